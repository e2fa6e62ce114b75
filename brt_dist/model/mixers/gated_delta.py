"""Gated DeltaNet (arXiv 2412.06464): the delta rule on a matrix that decays, at a rate that the token decides.

As `delta` (its file says what the symbols mean), with S_{t-1} multiplied by exp(g_t) first,

    g_t = -exp(a) softplus(x_t u + b)        one for each head

and with an output gate: what a head reads is multiplied by the SiLU of a projection of the token.  a is the logarithm
of a number that starts uniform up to 16; softplus(b) starts between 0.001 and 0.1, uniform in its logarithm, as in
Mamba 2.
"""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from brt_dist.config.halves import Matrix
from brt_dist.model.mixers.delta import DeltaMixer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from brt_dist.config.schema import ModelConfig

LARGEST_RATE = 16.0
SMALLEST_STEP, LARGEST_STEP = 1e-3, 0.1


class GatedDeltaMixer(DeltaMixer):
    """The gated delta rule over all tokens of the document so far, without positions."""

    kind: Literal["gated_delta"] = Field(  # type: ignore[assignment]
        "gated_delta", description="Gated DeltaNet: the delta rule on a matrix that decays"
    )
    gate: bool = Field(True, description="multiply what a head reads by the SiLU of a projection of the token")

    rates: ClassVar[int] = 2
    """beta, and the number that the decay is made from"""

    def parameters(self, model: "ModelConfig") -> "Iterator[Matrix]":
        yield from super().parameters(model)
        yield from (Matrix(model.heads, split=True), Matrix(model.heads, split=True))

    def build_decay(self, heads: int) -> "nn.Module":
        import torch
        from torch import nn
        from torch.nn import functional

        from brt_dist.model.norms import widened
        from brt_dist.model.parameters import declare, drawn

        class Decay(nn.Module):
            """(..., h) -> g (..., h), at most 0."""

            def __init__(self) -> None:
                super().__init__()
                self.log_rate = nn.Parameter(torch.empty(heads))
                self.bias = nn.Parameter(torch.empty(heads))
                declare(self.log_rate, drawn(first_log_rate), partition_dim=0)
                declare(self.bias, drawn(first_bias), partition_dim=0)

            def forward(self, x: "Tensor") -> "Tensor":
                return -widened(self.log_rate).exp() * functional.softplus(widened(x) + widened(self.bias))

        return Decay()


def first_log_rate(uniform: "Tensor") -> "Tensor":
    """The logarithm of a number that is uniform up to 16, from one that is uniform up to 1."""
    return (uniform * LARGEST_RATE).log()


def first_bias(uniform: "Tensor") -> "Tensor":
    """b, so that softplus(b) is uniform in its logarithm, from a number that is uniform up to 1."""
    low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
    return (low + uniform * (high - low)).exp().expm1().log()
