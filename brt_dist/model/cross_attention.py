"""Attention of a decoder to what an encoder made of its source (arXiv 1706.03762)."""

import math
from typing import cast

from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import attend, merge_heads, split_heads
from brt_dist.model.dropout import Dropout, dropped_into
from brt_dist.model.linear import ColumnLinear, RowLinear
from brt_dist.model.norms import RMSNorm, unit_length
from brt_dist.model.scales import HeadScale


class CrossAttention(nn.Module):
    """Every token attends to all of the source.

    As in the other attention of this model keys have unit length, and queries a learned length for each head; it starts
    at sqrt(E), which makes attention as sharp as a Transformer's.
    """

    def __init__(self, model: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        attended = model.heads * model.head_dim
        self.index, self.head_dim = index, model.head_dim
        self.norm, self.source_norm = RMSNorm(model.width), RMSNorm(model.width)
        self.queries = ColumnLinear(model.width, attended, parallel)
        self.projections = ColumnLinear(model.width, 2 * attended, parallel, stacked=(2, model.head_dim))
        self.scale = HeadScale(model, "absolute", math.sqrt(model.head_dim))
        self.merge = RowLinear(attended, model.width, parallel)

    def forward(self, x: Tensor, source: Tensor, dropout: Dropout | None) -> Tensor:
        """x (N, b, D) of the decoder, source (M, b, D) of the encoder -> (N, b, D), to be added to x."""
        asked = self.norm(x, dropped_into(self.queries, dropout, self.index, "cross-attention input"))
        (queries,) = split_heads(asked, 1, self.head_dim)
        keys, values = split_heads(self.source_norm(source, self.projections), 2, self.head_dim)
        attended = attend(self.scale.queries(queries), unit_length(keys, dtype=keys.dtype), values)
        return cast(Tensor, self.merge(merge_heads([attended])))
