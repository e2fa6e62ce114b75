"""Tokens that attend to the window of tokens before them, and perhaps to a recurrent state."""

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window, merge_heads, split_heads, with_previous_block
from brt_dist.model.dropout import Dropout, dropped_into
from brt_dist.model.kernels.base import kernel
from brt_dist.model.linear import ColumnLinear, RowLinear
from brt_dist.model.memory import Memory
from brt_dist.model.multiplicative import MultiplicativeLinear
from brt_dist.model.norms import RMSNorm, unit_length, widened
from brt_dist.model.positions import RelativeBias, rotated
from brt_dist.model.remade import Remade
from brt_dist.model.scales import HeadScale

if TYPE_CHECKING:
    from brt_dist.model.mixers.window import AttentionMixer


class ProjectedState(NamedTuple):
    """A state that enters a block, and its projections for attention."""

    state: Tensor
    """(S, b, D); under sequence parallel this rank's states (S/tp, b, D)"""
    keys: Tensor
    """(b, h, S, E), as the others; tokens of the block attend to these and the values"""
    values: Tensor
    queries: Tensor
    token_queries: Tensor


class WindowAttention(nn.Module):
    """Attention within a sliding window; with feedback also to the state that is fed back.  See `mixers/base.py`."""

    def __init__(
        self, settings: "AttentionMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        self.tokens = TokenAttention(settings, model, index, parallel)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        starts: Tensor,
        dropout: Dropout | None = None,
        fed_back: ProjectedState | None = None,
    ) -> tuple[Tensor, Memory]:
        heads = self.tokens.project(x, dropout)
        window = heads.window(memory, starts)
        with heads.remade.read():
            attended, kept = self.mix(heads, window, memory, starts, dropout, fed_back)
        kept["keys"], kept["values"] = heads.keys[:, -1].transpose(1, 2), heads.values[:, -1].transpose(1, 2)
        return self.tokens.output(attended), kept

    def mix(
        self,
        heads: "TokenHeads",
        window: Window,
        memory: Memory,
        starts: Tensor,
        dropout: Dropout | None,
        fed_back: ProjectedState | None,
    ) -> tuple[list[Tensor], Memory]:
        """What tokens gather, (b, t, h, W, E) per kind of attention, and the memory besides the window."""
        attended = [self.tokens.to_tokens(heads, window, dropout)]
        if fed_back is not None:
            attended.append(self.tokens.to_states(heads, fed_back.keys.unsqueeze(1), fed_back.values.unsqueeze(1)))
        return attended, {}


class TokenHeads(NamedTuple):
    """Projections of the tokens, each (b, t, h, W, E); keys and queries have the length that attention wants."""

    keys: Tensor
    values: Tensor
    queries: Tensor
    state_queries: Tensor | None  # where there are states
    remade: Remade
    """what made them, and makes the windows"""

    def window(self, memory: Memory, starts: Tensor) -> Window:
        """What the tokens of each block see: keys and values of the block and of the one before it."""
        keys, values = (
            self.remade.made(with_previous_block, blocks, memory[name], starts)
            for name, blocks in (("keys", self.keys), ("values", self.values))
        )
        return Window(keys, values)


class TokenAttention(nn.Module):
    """Norm, projections and output of the tokens' attention.

    Rows of `projections` are ordered (head, [key, value, query, query of states], E), columns of `merge` (head,
    [from tokens, from states], E).
    """

    def __init__(
        self, settings: "AttentionMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        self.model, self.settings, self.index = model, settings, index
        size, crosses = model.heads * model.head_dim, settings.crosses(model)
        self.norm = RMSNorm(model.width)
        kinds = 3 + crosses
        if settings.qkv == "multiplicative":
            self.projections: nn.Module = MultiplicativeLinear(
                model.width, model.heads, kinds, model.head_dim, parallel
            )
        else:
            self.projections = ColumnLinear(model.width, kinds * size, parallel, stacked=(kinds, model.head_dim))
        self.scale = HeadScale(model, settings.attention_scale, settings.query_length)
        self.state_scale = HeadScale(model, settings.attention_scale, settings.query_length) if crosses else None
        self.positions = RelativeBias(model) if settings.positions == "t5" else None
        self.merge = RowLinear((1 + crosses) * size, model.width, parallel)

    def project(self, x: Tensor, dropout: Dropout | None) -> TokenHeads:
        """Project the tokens x (N, b, D) of all blocks at once."""
        projected = self.norm(x, dropped_into(self.projections, dropout, self.index, "attention input"))
        blocks = projected.unflatten(0, (-1, self.model.window))
        count = 3 if self.state_scale is None else 4
        keys, values, queries, *others = split_heads(blocks, count, self.model.head_dim)
        state_queries = self.state_scale.queries(others[0]) if self.state_scale is not None else None
        is_wide = self.settings.positions == "rotary"  # they are rounded after the rotation
        remade = Remade()
        keys = remade.made(unit_length, keys, None, keys.dtype)
        queries = remade.made(unit_length, queries, self.scale.factor, None if is_wide else queries.dtype)
        return TokenHeads(keys, values, queries, state_queries, remade)

    def to_tokens(self, heads: TokenHeads, window: Window, dropout: Dropout | None) -> Tensor:
        """Attention to the W tokens before each token -> (b, t, h, W, E)."""
        mask = None
        if dropout is not None:
            mask = dropout.attention(heads.values.device, self.model.heads, self.model.window, self.index)
        queries, keys, visible = heads.queries, window.keys, widened(heads.queries.new_zeros(1, 1, self.model.window))
        if self.settings.positions == "rotary":
            # here and not earlier, so that the cache and what the states see contain no positions
            queries = heads.remade.made(_turned, queries, self.model.window, keys.dtype)
            keys = heads.remade.made(rotated, keys)
        if self.positions is not None:
            visible = self.scale(self.positions())
        compute = kernel(self.model.attention_kernel, queries.device)
        return compute(queries, Window(keys, window.values), visible, mask)

    def to_states(self, heads: TokenHeads, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to all states (b, t, h, S, E) that entered the token's block -> (b, t, h, W, E)."""
        queries = cast(Tensor, heads.state_queries)
        return kernel(self.model.attention_kernel, queries.device).everywhere(queries, keys, values)

    def output(self, attended: list[Tensor]) -> Tensor:
        """(b, t, h, W, E) of each kind of attention -> (N, b, D)."""
        return cast(Tensor, self.merge(merge_heads(attended).flatten(0, 1)))


def _turned(queries: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """Wide queries, rounded after the rotation only."""
    return rotated(queries, first).to(dtype)
