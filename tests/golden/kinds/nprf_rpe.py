"""Kernelised attention with relative positions (arXiv 2106.12566), by FFT and by a matrix.

`y_bidir` has the same sums over all lags, earlier and later.
"""

from typing import Any

import torch
from torch import Tensor

from brt_dist.model.kernel_attention import features, near_and_far
from brt_dist.model.norms import unit_length
from brt_dist.model.toeplitz import toeplitz, weighted_sums
from tests.golden.differences import Differences, differences, present

ARRAYS = ("q", "k", "v", "W", "b", "y_causal")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    asked, offered = (features(unit_length(arrays[name]), arrays["W"]) for name in ("q", "k"))
    values = torch.cat([arrays["v"], torch.ones_like(arrays["v"][..., :1])], -1)
    pairs = []
    for read in (*causal(asked, offered, values, arrays["b"]), *both_ways(asked, offered, values, arrays["b"])):
        pairs += present({name: y[..., :-1] / y[..., -1:] for name, y in read.items()}, arrays)
    return differences(pairs)


def causal(asked: Tensor, offered: Tensor, values: Tensor, bias: Tensor) -> list[dict[str, Tensor]]:
    """All tokens as one block, after nothing."""
    streams, heads, tokens, count = asked.shape
    table = bias[:, :tokens].flip(-1)  # by lag, from 0
    window = [torch.cat([torch.zeros_like(x), x], 2).unsqueeze(1) for x in (offered, values)]
    blank = values.new_zeros(streams, heads, count, values.shape[-1])
    starts = torch.ones(streams, 1, dtype=torch.bool)
    found = [near_and_far(asked.unsqueeze(1), *window, table, blank, starts, use)[0][:, 0] for use in (True, False)]
    return [{"y_causal": y} for y in found]


def both_ways(asked: Tensor, offered: Tensor, values: Tensor, bias: Tensor) -> list[dict[str, Tensor]]:
    kernel = bias.exp()
    products = (offered.unsqueeze(-1) * values.unsqueeze(-2)).flatten(-2)
    summed = weighted_sums(kernel, products).unflatten(-1, (-1, values.shape[-1]))
    by_fft = (asked.unsqueeze(-2) @ summed).squeeze(-2)
    by_matrix = (asked @ offered.transpose(-1, -2) * toeplitz(kernel)) @ values
    return [{"y_bidir": by_fft}, {"y_bidir": by_matrix}]
