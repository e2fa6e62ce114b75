"""Normalisations.  Statistics are taken in float32 (or wider) whatever the type of the activations."""

import torch
from torch import Tensor, nn

from brt_dist.model.parameters import declare, ones

EPSILON = 1e-6


def widened(x: Tensor) -> Tensor:
    """`x` in a type of at least 32 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-6) * weight over the last dimension; no mean is subtracted, there is no bias.

    The result has the type of the weight: under bf16 the float32 state enters the matrix products as bf16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        declare(self.weight, ones())

    def forward(self, x: Tensor) -> Tensor:
        return rms_normed(x, self.weight)


def rms_normed(x: Tensor, weight: Tensor) -> Tensor:
    """What :class:`RMSNorm` computes with this weight."""
    wide = widened(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * widened(weight)
    return scaled.to(weight.dtype)


def unit_length(x: Tensor) -> Tensor:
    """Keys and queries of a head (..., E) on the unit sphere, in float32: x / sqrt(sum(x²) + 1e-6)."""
    wide = widened(x)
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)
