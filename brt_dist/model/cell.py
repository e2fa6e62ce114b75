"""The recurrent cell and its scan over the blocks of a segment: the horizontal direction of a recurrent layer."""

from dataclasses import replace
from typing import NamedTuple

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window, attend, merge_heads, split_heads
from brt_dist.model.gates import GatedUpdate
from brt_dist.model.linear import ColumnLinear, gather
from brt_dist.model.norms import RMSNorm, unit_length
from brt_dist.model.parameters import declare, normal
from brt_dist.model.scales import HeadScale
from brt_dist.model.sequence import own_part


class Scanned(NamedTuple):
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

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        width, attended = config.width, 2 * config.heads * config.head_dim
        self.head_dim = config.head_dim
        self.carries_float32 = config.state_dtype == "float32"
        self.always_clear = config.clear_state
        self.is_split = parallel.sequence_parallel

        self.initial_state = nn.Parameter(torch.empty(config.states, width))
        declare(self.initial_state, normal(0.1))
        self.norm = RMSNorm(width)
        self.identities = nn.Parameter(torch.empty(config.states, width))
        declare(self.identities, normal(1.0))
        self.projections = ColumnLinear(
            width, 4 * config.heads * config.head_dim, parallel, stacked=(4, config.head_dim)
        )
        self.scale = HeadScale(config)
        self.token_scale = HeadScale(config)
        self.tail = _TAILS[config.cell](config, attended, parallel)

    @property
    def state_dtype(self) -> torch.dtype:
        """Type of the state on its way over blocks and segments; the gates compute in float32 in any case."""
        dtype = self.initial_state.dtype
        return torch.promote_types(dtype, torch.float32) if self.carries_float32 else dtype

    def forward(self, memory: Tensor, window: Window, starts: Tensor) -> Scanned:
        """Run over the blocks in order.

        Args:
            memory: (b, S, D) state after the segment before; under sequence parallel this rank's part of S.
            window: keys and values of the tokens that each block's states see (b, t, h, 2W, E).
            starts: (b, t) bool; where true the state that enters the block is the learned initial one.
        """
        initial, identities = self.initial_state.to(self.state_dtype).unsqueeze(1), self.identities.unsqueeze(1)
        if self.is_split:
            initial, identities = own_part(initial), own_part(identities)
        if self.always_clear:
            starts = torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)
        state = memory.to(self.state_dtype).transpose(0, 1)  # sequence first, as Megatron's layers have it
        seen = []
        for block in range(starts.shape[1]):
            state = torch.where(starts[:, block, None], initial, state)
            normed = self.norm(state) + identities
            keys, values, queries, token_queries = split_heads(self.projections(normed), 4, self.head_dim)
            keys = unit_length(keys).to(values.dtype)
            seen.append((keys, values))
            to_states = attend(self.scale(unit_length(queries)), keys, values)
            token_queries = self.token_scale(unit_length(token_queries))
            to_tokens = attend(token_queries, window.keys[:, block], window.values[:, block])
            state = self.tail(state, merge_heads([to_states, to_tokens]))
        all_keys, all_values = zip(*seen, strict=True)
        return Scanned(torch.stack(all_keys, 1), torch.stack(all_values, 1), state.transpose(0, 1))


class _Skip(nn.Module):
    def __init__(self, config: ModelConfig, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.update = GatedUpdate(attended, config.width, config.gate, parallel)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        return self.update(state, attended)


class _Single(nn.Module):
    def __init__(self, config: ModelConfig, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        # its input is a gather of heads, which every rank has for all states
        self.hidden = ColumnLinear(attended, config.mlp_width, replace(parallel, sequence_parallel=False))
        self.update = GatedUpdate(config.mlp_width, config.width, config.gate, parallel, tanh=True)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        # Heads are split over the ranks and so are the MLP's columns, but every column needs every head.
        return self.update(state, torch.relu(self.hidden(gather(attended))))


class _Dual(nn.Module):
    def __init__(self, config: ModelConfig, attended: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.attention_update = GatedUpdate(attended, config.width, config.gate, parallel)
        self.norm = RMSNorm(config.width)
        self.hidden = ColumnLinear(config.width, config.mlp_width, parallel)
        self.update = GatedUpdate(config.mlp_width, config.width, config.gate, parallel)

    def forward(self, state: Tensor, attended: Tensor) -> Tensor:
        state = self.attention_update(state, attended)
        return self.update(state, torch.relu(self.hidden(self.norm(state))))


_TAILS = {"skip": _Skip, "single": _Single, "dual": _Dual}
