"""Attention of a sequence that was shortened by a cosine transform (arXiv 2305.15099)."""

from typing import Any

from torch import Tensor

from brt_dist.model.transforms import shortened_attention
from tests.golden.differences import Differences, differences

ARRAYS = ("x", "Wq", "bq", "Wk", "bk", "Wv", "bv", "short_x", "attn_out")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    _, heads, length, _ = arrays["attn_out"].shape
    maps = tuple(arrays[name] for name in ("Wq", "bq", "Wk", "bk", "Wv", "bv"))
    short, attended = shortened_attention(arrays["x"], length, heads, maps)
    return differences([(short, arrays["short_x"]), (attended, arrays["attn_out"])])
