"""Sequences shortened by a cosine transform (arXiv 2305.15099): x (B, T, D), dct (B, D, T), short (B, M, D)."""

from typing import Any

from torch import Tensor

from brt_dist.model.transforms import cosines, from_cosines, shortened
from tests.golden.differences import Differences, differences, present

ARRAYS = ("x", "dct", "short")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    x = arrays["x"]
    coefficients = cosines(x.transpose(1, 2))
    ours = {"dct": coefficients, "short": shortened(x, arrays["short"].shape[1])}
    return differences([*present(ours, arrays), (from_cosines(coefficients).transpose(1, 2), x)])
