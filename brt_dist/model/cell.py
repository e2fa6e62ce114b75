"""The recurrent cell and its scan over the blocks of a segment: the horizontal direction of a recurrent layer."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window, merge_heads, split_heads
from brt_dist.model.gates import GatedUpdate
from brt_dist.model.kernels.base import kernel
from brt_dist.model.linear import ColumnLinear, gather
from brt_dist.model.norms import RMSNorm, unit_length
from brt_dist.model.parameters import declare, normal
from brt_dist.model.scales import HeadScale
from brt_dist.model.sequence import own_part
from brt_dist.model.window_attention import ProjectedState

if TYPE_CHECKING:
    from brt_dist.model.mixers.recurrent import RecurrentMixer


class ScanResult(NamedTuple):
    """What a scan leaves."""

    keys: Tensor
    """(b, t, h, S, E) of the state that entered each block"""
    values: Tensor
    state: Tensor
    """(b, S, D) after the last block; under sequence parallel this rank's states (b, S/tp, D)"""


class RecurrentCell(nn.Module):
    """S state vectors that attend to themselves and to the tokens of each block, and are updated through a gate.

    There is no dropout in this direction.  The tail is one of

    * skip: one gated update from the attention;
    * single: one gated update from an MLP of the attention;
    * dual: a gated update from the attention, then one from an MLP of the normalised result.
    """

    def __init__(self, settings: "RecurrentMixer", model: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        width, attended = model.width, 2 * model.heads * model.head_dim
        self.head_dim, self._kernel = model.head_dim, model.attention_kernel
        self.carries_float32 = settings.state_dtype == "float32"
        self.is_split = parallel.sequence_parallel

        self.initial_state = nn.Parameter(torch.empty(settings.states, width))
        declare(self.initial_state, normal(0.1))
        self.norm = RMSNorm(width)
        self.identities = nn.Parameter(torch.empty(settings.states, width))
        declare(self.identities, normal(1.0))
        self.projections = ColumnLinear(width, 4 * model.heads * model.head_dim, parallel, stacked=(4, model.head_dim))
        self.scale = HeadScale(model, settings.attention_scale, settings.query_length)
        self.token_scale = HeadScale(model, settings.attention_scale, settings.query_length)
        self.tail = _TAILS[settings.cell](settings, model.width, attended, parallel)

    @property
    def state_dtype(self) -> torch.dtype:
        """Type of the state as it is carried over blocks and segments; gates always compute in float32."""
        dtype = self.initial_state.dtype
        return torch.promote_types(dtype, torch.float32) if self.carries_float32 else dtype

    def forward(
        self, memory: Tensor, starts: Tensor, window: Window | None = None, projected: ProjectedState | None = None
    ) -> ScanResult | ProjectedState:
        """Run over the blocks in order; without a window, only enter the first.

        Both go through the module's call, so that ZeRO-3 can gather weights before a forward pass.

        Args:
            memory: (b, S, D) state before the first block; under sequence parallel this rank's part of S.
            starts: (b, t) bool; where true the state that enters the block is the learned initial one.
            window: keys and values of the tokens that each block's states see (b, t, h, 2W, E).
            projected: result of the same call without a window, if there was one.
        """
        state = memory.to(self.state_dtype).transpose(0, 1)  # sequence first, as Megatron's layers have it
        if window is None:
            return self._enter(state, starts[:, 0])
        seen = []
        # unbound at once: the gradient of a single indexed block would be as large as that of all blocks
        for begins, keys, values in zip(*(x.unbind(1) for x in (starts, *window)), strict=True):
            if projected is None:
                projected = self._enter(state, begins)
            seen.append((projected.keys, projected.values))
            state = self._update(projected, keys, values)
            projected = None
        all_keys, all_values = zip(*seen, strict=True)
        return ScanResult(torch.stack(all_keys, 1), torch.stack(all_values, 1), state.transpose(0, 1))

    def _enter(self, state: Tensor, starts: Tensor) -> ProjectedState:
        """The state (S, b, D) into a block, which starts a document where `starts` (b,) is true."""
        initial, identities = self.initial_state.to(self.state_dtype).unsqueeze(1), self.identities.unsqueeze(1)
        if self.is_split:
            initial, identities = own_part(initial), own_part(identities)
        state = torch.where(starts[:, None], initial, state)
        normed = self.norm(state) + identities
        keys, values, queries, token_queries = split_heads(self.projections(normed), 4, self.head_dim)
        return ProjectedState(
            state,
            unit_length(keys, dtype=keys.dtype),
            values,
            self.scale.queries(queries),
            self.token_scale.queries(token_queries),
        )

    def _update(self, projected: ProjectedState, token_keys: Tensor, token_values: Tensor) -> Tensor:
        """The state out of a block (S, b, D), whose states see these tokens (b, h, 2W, E)."""
        compute = kernel(self._kernel, token_keys.device).everywhere
        to_states = compute(projected.queries, projected.keys, projected.values)
        to_tokens = compute(projected.token_queries, token_keys, token_values)
        return self.tail(projected.state, merge_heads([to_states, to_tokens]))


class _Skip(nn.Module):
    def __init__(self, settings: "RecurrentMixer", width: int, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.update = GatedUpdate(attended, width, settings.gate, parallel)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        return self.update(state, attended)


class _Single(nn.Module):
    def __init__(self, settings: "RecurrentMixer", width: int, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        # its input is a gather of heads, which every rank has for all states
        self.hidden = ColumnLinear(attended, settings.mlp_width, replace(parallel, sequence_parallel=False))
        self.update = GatedUpdate(settings.mlp_width, width, settings.gate, parallel, tanh=True)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        # Heads are split over the ranks and so are the MLP's columns, but every column needs every head.
        return self.update(state, torch.relu(self.hidden(gather(attended))))


class _Dual(nn.Module):
    def __init__(self, settings: "RecurrentMixer", width: int, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.attention_update = GatedUpdate(attended, width, settings.gate, parallel)
        self.norm = RMSNorm(width)
        self.hidden = ColumnLinear(width, settings.mlp_width, parallel)
        self.update = GatedUpdate(settings.mlp_width, width, settings.gate, parallel)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        state = self.attention_update(state, attended)
        return self.update(state, torch.relu(self.norm(state, self.hidden)))


_TAILS = {"skip": _Skip, "single": _Single, "dual": _Dual}
