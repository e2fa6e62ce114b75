"""FNet's mixing (arXiv 2105.03824) of x (B, T, D), and the same without the contributions of later tokens."""

from typing import Any

from torch import Tensor

from brt_dist.model.transforms import fourier_mixed, fourier_mixed_by_products
from tests.golden.differences import Differences, differences, present

ARRAYS = ("x", "y")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    x = arrays["x"]
    causal = fourier_mixed_by_products(x, causal=True)
    ours = {"y": fourier_mixed(x), "y_dft": fourier_mixed_by_products(x), "y_causal_ours": causal}
    return differences([*present(ours, arrays), (ours["y_dft"], arrays["y"])])
