"""A memory of k rows that all heads share (MemSizer, arXiv 2203.12644), and the layer around it.

Shapes: b streams, t blocks, W tokens of a block, k rows (`rows`), M channels of this rank.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model.dropout import Dropout
from brt_dist.model.memory import Memory
from brt_dist.model.norms import RMSNorm, widened
from brt_dist.model.parameters import constant, declare, fan_in, ones
from brt_dist.model.regions import enter, leave, total

if TYPE_CHECKING:
    from brt_dist.model.mixers.memsizer import MemSizerMixer

EPSILON = 1e-5


def shared_memory(
    queries: Tensor, keys: Tensor, values: Tensor, state: Tensor, count: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Token t reads q_t S_t / sqrt(t), S_t being the sum of k_i v_i^T over the t tokens of the document so far.

    Args:
        queries: (b, t, W, k).
        keys: (b, t, W, k).
        values: (b, t, W, M).
        state: (b, k, M) sum before the first block.
        count: (b,) tokens in it.
        starts: (b, t) bool; where true the block begins with no tokens.

    Returns:
        (b, t, W, M), and sum and count after the last block.
    """
    sums, window = keys.transpose(-1, -2) @ values, keys.shape[2]
    entering, counts = [], []
    for block in range(starts.shape[1]):
        state = state.masked_fill(starts[:, block, None, None], 0.0)
        count = count.masked_fill(starts[:, block], 0.0)
        entering.append(state)
        counts.append(count)
        state, count = state + sums[:, block], count + window
    read = queries @ torch.stack(entering, 1) + (queries @ keys.transpose(-1, -2)).tril() @ values
    positions = torch.arange(1, window + 1, device=count.device, dtype=count.dtype)
    return read * torch.rsqrt(torch.stack(counts, 1)[:, :, None] + positions).unsqueeze(-1), state, count


class MemSizer(nn.Module):
    """See `mixers/memsizer.py`.

    Tensor parallel ranks share the channels of values, memory and output; all have every query and key.
    """

    def __init__(
        self, settings: "MemSizerMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        self.settings, self.model, self.index, self.parallel = settings, model, index, parallel
        width, rows, asked = model.width, settings.rows, model.heads * settings.rows
        self.norm = RMSNorm(width)
        self.queries = BiasedLinear(width, asked, xavier(width, asked, settings.query_scale))
        self.keys = BiasedLinear(width, rows, xavier(width, rows))
        self.values = BiasedLinear(width, width, xavier(width, width), parallel)
        self.key_norm = LayerNorm(rows)
        self.value_norm = LayerNorm(width, parallel)

    def forward(
        self, x: Tensor, memory: Memory, starts: Tensor, dropout: Dropout | None, fed_back: None = None
    ) -> tuple[Tensor, Memory]:
        x = self.norm(x)
        if dropout is not None:
            x = dropout.activations(x, self.index, "attention input")
        asked = widened(self.queries(x)).unflatten(-1, (self.model.heads, -1)).softmax(-1).mean(-2)
        addresses = enter(torch.cat([asked, self.key_norm(self.keys(x))], -1), self.parallel)
        values = self.value_norm(self.values(enter(x, self.parallel)))
        queries, keys = (self._blocks(part, starts.shape[1]) for part in addresses.chunk(2, -1))
        read, state, count = shared_memory(
            queries, keys, self._blocks(values, starts.shape[1]), memory["state"], memory["count"][:, 0], starts
        )
        y = read.to(x.dtype).movedim(0, 2).flatten(0, 1)
        return leave(y, self.parallel), {"state": state, "count": count.unsqueeze(-1)}

    def _blocks(self, x: Tensor, blocks: int) -> Tensor:
        """(N, b, n) -> (b, t, W, n)."""
        return x.unflatten(0, (blocks, -1)).movedim(2, 0)

    def statistics(self, memories: Sequence[Memory]) -> Iterator[tuple[str, Tensor]]:
        for memory in memories:
            yield "state_rms", memory["state"].double()
            yield "state_max", memory["state"].double()

    def statistics_parameters(self) -> list[nn.Parameter]:
        return []


class BiasedLinear(nn.Module):
    """(..., inputs) -> (..., outputs); with `parallel` this rank's part of the outputs."""

    def __init__(self, inputs: int, outputs: int, variance: float, parallel: ModelParallelConfig | None = None) -> None:
        super().__init__()
        ranks, split = (1, None) if parallel is None else (parallel.tensor_model_parallel_size, 0)
        self.weight = nn.Parameter(torch.empty(outputs // ranks, inputs))
        self.bias = nn.Parameter(torch.empty(outputs // ranks))
        declare(self.weight, fan_in(variance), split)
        declare(self.bias, constant(0.0), split)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias over the last dimension, in float32 or wider.

    With `parallel` that dimension is split over the tensor parallel ranks, and the statistics are over all of it.
    """

    def __init__(self, width: int, parallel: ModelParallelConfig | None = None) -> None:
        super().__init__()
        self.width, self.parallel = width, parallel
        ranks, split = (1, None) if parallel is None else (parallel.tensor_model_parallel_size, 0)
        self.weight = nn.Parameter(torch.empty(width // ranks))
        self.bias = nn.Parameter(torch.empty(width // ranks))
        declare(self.weight, ones(), split)
        declare(self.bias, constant(0.0), split)

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        centered = wide - self._mean(wide)
        scaled = centered * torch.rsqrt(self._mean(centered.square()) + EPSILON)
        return scaled * widened(self.weight) + widened(self.bias)

    def _mean(self, x: Tensor) -> Tensor:
        here = x.sum(-1, keepdim=True) / self.width
        return here if self.parallel is None else total(here, self.parallel)


def xavier(inputs: int, outputs: int, scale: float = 1.0) -> float:
    """Variance of Xavier's first values with gain scale^-1/2, as a multiple of 1/inputs."""
    return 2 * inputs / (scale * (inputs + outputs))
