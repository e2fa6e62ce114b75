"""Attention to a window of tokens and to compressed blocks before it; see `mixers/fourier_memory.py`."""

import math
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window
from brt_dist.model.dropout import Dropout
from brt_dist.model.memory import Memory
from brt_dist.model.norms import unit_length
from brt_dist.model.transforms import shortened
from brt_dist.model.window_attention import ProjectedState, TokenHeads, WindowAttention

if TYPE_CHECKING:
    from brt_dist.model.mixers.fourier_memory import FourierMemoryMixer


class FourierMemoryAttention(WindowAttention):
    """See `mixers/fourier_memory.py`."""

    def __init__(
        self, settings: "FourierMemoryMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__(settings, model, index, parallel)
        self.rows = settings.rows(model)

    def mix(
        self,
        heads: TokenHeads,
        window: Window,
        memory: Memory,
        starts: Tensor,
        dropout: Dropout | None,
        fed_back: ProjectedState | None,
    ) -> tuple[list[Tensor], Memory]:
        length = heads.keys.shape[3]
        keys = compressed(window.keys[..., :length, :], self.rows)
        values = compressed(window.values[..., :length, :], self.rows)
        older_keys, kept_keys = older(unit_length(keys, dtype=keys.dtype), memory["older_keys"], starts)
        older_values, kept_values = older(values, memory["older_values"], starts)
        near = self.tokens.to_tokens(heads, window, dropout)
        far = self.tokens.to_states(heads, older_keys, older_values)
        return [near, far], {"older_keys": kept_keys, "older_values": kept_values}


def compressed(blocks: Tensor, rows: int) -> Tensor:
    """Blocks (b, t, h, W, E) with `rows` rows [M] of their lowest frequencies; a constant stays unchanged."""
    short = shortened(blocks.flatten(0, 2), rows).unflatten(0, blocks.shape[:3])
    return short * math.sqrt(rows / blocks.shape[3])


def older(rows: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """What each block sees of the blocks before the previous one.

    Args:
        rows: (b, t, h, M, E) of the block before each block; zeros where a document starts.
        memory: (b, R*M, h, E) rows of the R blocks before those, the oldest first.
        starts: (b, t) bool; where true nothing older is seen.

    Returns:
        (b, t, h, R*M, E), and the memory after the last block.
    """
    entering, held = [], memory.to(rows.dtype).transpose(1, 2)
    for block in range(starts.shape[1]):
        held = held.masked_fill(starts[:, block, None, None, None], 0.0)
        entering.append(held)
        held = torch.cat([held[:, :, rows.shape[3] :], rows[:, block]], 2)
    return torch.stack(entering, 1), held.transpose(1, 2)
