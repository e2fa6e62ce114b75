"""Window attention whose tokens also attend to contexts that filters make of the segment; see `mixers/bst.py`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import attend, split_heads
from brt_dist.model.dropout import Dropout
from brt_dist.model.filters import DiagonalFilters, UnstructuredFilters
from brt_dist.model.linear import local_heads
from brt_dist.model.memory import Memory
from brt_dist.model.norms import rms_normed, unit_length
from brt_dist.model.parameters import declare, fan_in, normal, ones
from brt_dist.model.regions import RegionLinear, enter, shared
from brt_dist.model.window_attention import ProjectedState, WindowAttention

if TYPE_CHECKING:
    from brt_dist.model.mixers.bst import BlockStateMixer


class BlockStateAttention(WindowAttention):
    """See `mixers/base.py`."""

    def __init__(
        self, settings: "BlockStateMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__(settings, model, index, parallel)
        self.model, self.settings, self.parallel = model, settings, parallel
        width, own = model.width, settings.contexts == "multi_head"
        filters = local_heads(model) if own else settings.filters(model)
        kind = DiagonalFilters if settings.filter == "s4d" else UnstructuredFilters
        split = 0 if own else None
        self.filters = kind(filters, width, settings.filter_states, split, parallel)
        self.direct = nn.Parameter(torch.empty(filters, width))  # b in y = K * u + b u
        declare(self.direct, normal(1.0), split)
        self.context_norm = nn.Parameter(torch.empty(local_heads(model) if own else 1, width))
        declare(self.context_norm, ones(), split)
        pair = 2 * model.heads * model.head_dim
        if own:  # each head has its own contexts
            self.context_heads = nn.Parameter(torch.empty(2 * local_heads(model) * model.head_dim, width))
            declare(self.context_heads, fan_in(), 0, stacked=(2, model.head_dim))
        else:
            self.context_projections = RegionLinear(width, pair, parallel, stacked=(2, model.head_dim))
        if settings.contexts == "single_head":
            self.lift = nn.Parameter(torch.empty(local_heads(model)))
            declare(self.lift, ones(), 0)
        if settings.contexts == "multi_filter":
            self.initial_contexts = nn.Parameter(torch.empty(filters, width))
            declare(self.initial_contexts, normal(0.1))
            self.identities = nn.Parameter(torch.empty(filters, width))
            declare(self.identities, normal(1.0))

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
            attended = [self.tokens.to_tokens(heads, window, dropout)]
        contexts, kept = self.contexts(enter(self.tokens.norm(x), self.parallel), memory, starts)
        keys, values = self.projected(contexts.to(x.dtype))
        queries = cast(Tensor, heads.state_queries)
        attended.append(attend(queries, unit_length(keys).to(values.dtype), values, self._bias(queries)))
        kept["keys"], kept["values"] = heads.keys[:, -1].transpose(1, 2), heads.values[:, -1].transpose(1, 2)
        return self.tokens.output(attended), kept

    def contexts(self, x: Tensor, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """What the tokens of each block can attend to, from all normalised tokens x (N, b, D), and the new memory.

        Returns:
            (b, t, F, W, D), all outputs of the filters in the block; multi_filter: (b, t, F, D), the last outputs in
            the block before.
        """
        u = x.unflatten(0, (-1, self.model.window)).permute(2, 0, 1, 3)  # (b, t, W, D)
        if not self.settings.carry:  # memory is as at the start of a document
            starts = torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)
        last = self.settings.contexts == "multi_filter"
        y, state = self.filters(u, memory["filters"], starts, last)
        direct = self._shared(self.direct)
        if not last:
            return (y + direct.unsqueeze(-1) * u.transpose(2, 3).unsqueeze(2)).transpose(-1, -2), {"filters": state}
        y = y + direct * u[:, :, -1].unsqueeze(2)
        before = torch.cat([memory["contexts"].to(y.dtype).unsqueeze(1), y[:, :-1]], 1)
        initial = self._shared(self.initial_contexts).to(y.dtype)
        before = torch.where(starts[:, :, None, None], initial, before)
        return before, {"filters": state, "contexts": y[:, -1]}

    def projected(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, t, h, W or F, E) of contexts."""
        weight = self._shared(self.context_norm)
        weight = weight if self.settings.contexts == "multi_filter" else weight.unsqueeze(1)
        normed = rms_normed(contexts, weight)
        if self.settings.contexts == "multi_head":  # (b, t, h, W, D) times (h, D, 2E)
            heads = self.context_heads.unflatten(0, (normed.shape[2], -1)).transpose(-1, -2)
            by_head = normed.movedim(2, 0).flatten(1, 3) @ heads
            keys, values = by_head.unflatten(1, (*normed.shape[:2], -1)).movedim(0, 2).chunk(2, -1)
            return keys, values
        if self.settings.contexts == "multi_filter":
            rows = (normed + self._shared(self.identities)).permute(1, 2, 0, 3)  # (t, F, b, D)
        else:
            rows = normed.squeeze(2).permute(1, 2, 0, 3)
        made = self.context_projections(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        keys, values = split_heads(made, 2, self.model.head_dim)
        if self.settings.contexts == "single_head":
            lift = self.lift[:, None, None]
            keys, values = keys * lift, values * lift
        return keys, values

    def statistics(self, memories: Sequence[Memory]) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the layer's statistics, see `BlockStateMixer.statistics`."""
        for memory in memories:
            yield "state_rms", memory["filters"].double()
            yield "state_max", memory["filters"].double()

    def statistics_parameters(self) -> list[nn.Parameter]:
        return []

    def _shared(self, weight: Tensor) -> Tensor:
        """A parameter that every rank holds whole and uses for its own heads; with multi_head ranks hold parts."""
        return weight if self.settings.contexts == "multi_head" else shared(weight, self.parallel)

    def _bias(self, like: Tensor) -> Tensor | None:
        """A token sees the outputs at its own and earlier tokens of the block; or all contexts of the block before."""
        if self.settings.contexts == "multi_filter":
            return None
        window = self.model.window
        return like.new_full((1, window, window), -torch.inf, dtype=torch.float32).triu(1)
