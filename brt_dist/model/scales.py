"""The learned length of the queries, one number per head; it replaces the usual 1/sqrt(E)."""

from typing import Literal

import torch
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.linear import local_heads
from brt_dist.model.norms import unit_length, widened
from brt_dist.model.parameters import constant, declare


class HeadScale(nn.Module):
    """|weight| of each head; the code of 2022 took the raw weight (`attention_scale` of the mixer)."""

    def __init__(self, model: ModelConfig, attention_scale: Literal["absolute", "raw"], start: float) -> None:
        super().__init__()
        self.absolute = attention_scale == "absolute"
        self.weight = nn.Parameter(torch.empty(local_heads(model)))
        declare(self.weight, constant(start), partition_dim=0)

    @property
    def factor(self) -> Tensor:
        """(h, 1, 1), float32, for (..., h, n, E) or (h, n, m)."""
        weight = widened(self.weight)[:, None, None]
        return weight.abs() if self.absolute else weight

    def forward(self, bias: Tensor) -> Tensor:
        """The position bias (h, n, m) times the scale of the head; float32."""
        return bias * self.factor

    def queries(self, x: Tensor, is_wide: bool = False) -> Tensor:
        """Queries (..., h, n, E), of any length, with the length of their head's scale.

        is_wide: in float32; else in the type of `x`.
        """
        return unit_length(x, self.factor, None if is_wide else x.dtype)
