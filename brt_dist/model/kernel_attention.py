"""Kernelised attention with relative positions (arXiv 2106.12566).

Shapes: b streams, t blocks, h heads of this rank, W tokens of a block, m features of a head, M size of a value and one
more, whose values are all 1: its sum is the denominator.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import merge_heads, split_heads, with_previous_block
from brt_dist.model.dropout import Dropout, dropped_into
from brt_dist.model.linear import ColumnLinear, RowLinear, local_heads
from brt_dist.model.memory import Memory
from brt_dist.model.norms import RMSNorm, unit_length, widened
from brt_dist.model.parameters import constant, declare, seeded_generator
from brt_dist.model.toeplitz import toeplitz, weighted_sums

if TYPE_CHECKING:
    from brt_dist.model.mixers.nprf_rpe import KernelMixer


def features(x: Tensor, directions: Tensor) -> Tensor:
    """exp(Wx - |x|²/2) / sqrt(m): products of these estimate exp(q·k) without bias.

    Args:
        x: (..., h, n, E).
        directions: (h, m, E), standard normal.

    Returns:
        (..., h, n, m).
    """
    exponents = x @ directions.transpose(-1, -2) - x.square().sum(-1, keepdim=True) / 2
    return exponents.exp() * directions.shape[-2] ** -0.5


def kernel_of(table: Tensor, length: int) -> Tensor:
    """Weights exp(b) of the lags, for `toeplitz`: (h, R+1) -> (h, 2n-1), n = length > R; 0 for later
    positions.

    The last entry of the table is that of every lag from R on.
    """
    weights = table.exp()
    by_lag = torch.cat([weights, weights[:, -1:].expand(-1, length - weights.shape[1])], -1)
    return torch.cat([by_lag.flip(-1), torch.zeros_like(by_lag[:, 1:])], -1)


def near_and_far(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, sums: Tensor, starts: Tensor, use_fft: bool
) -> tuple[Tensor, Tensor]:
    """Attention to the previous and the present block by lag, and to all blocks before by one weight.

    Args:
        queries: (b, t, h, W, m) features.
        keys: (b, t, h, 2W, m) features of the previous and of the present block.
        values: (b, t, h, 2W, M).
        table: (h, R+1) bias of each lag, R at most W.
        sums: (b, h, m, M) of keys and values of the blocks before the previous one of the first.
        starts: (b, t) bool; where true there is nothing before the block.
        use_fft: sum over lags by FFT.

    Returns:
        (b, t, h, W, M), and the sums for the block after the last.
    """
    window = queries.shape[3]
    far, entering = table[:, -1].exp()[:, None, None], []
    leaving = keys[..., :window, :].transpose(-1, -2) @ values[..., :window, :]
    for block in range(starts.shape[1]):
        sums = sums.masked_fill(starts[:, block, None, None, None], 0.0)
        entering.append(sums)
        sums = sums + leaving[:, block]
    kernel = kernel_of(table, 2 * window)
    if use_fft:
        products = (keys.unsqueeze(-1) * values.unsqueeze(-2)).flatten(-2)  # (b, t, h, 2W, m*M)
        summed = weighted_sums(kernel, products)[..., window:, :].unflatten(-1, (-1, values.shape[-1]))
        near = (queries.unsqueeze(-2) @ summed).squeeze(-2)
    else:
        near = (queries @ keys.transpose(-1, -2) * toeplitz(kernel)[:, window:]) @ values
    return near + queries @ (torch.stack(entering, 1) * far), sums


class KernelAttention(nn.Module):
    """See `mixers/nprf_rpe.py`."""

    directions: Tensor

    def __init__(self, settings: "KernelMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.settings, self.model, self.index = settings, model, index
        attended, heads = model.heads * model.head_dim, local_heads(model)
        self.norm = RMSNorm(model.width)
        self.projections = ColumnLinear(model.width, 3 * attended, parallel, stacked=(3, model.head_dim))
        self.positions = nn.Parameter(torch.empty(heads, settings.lags(model) + 1))
        declare(self.positions, constant(0.0), partition_dim=0)
        self.output = RowLinear(attended, model.width, parallel)
        # the same in every layout, recompute and attempt: they depend on seed and layer alone, and are not trained
        generator = seeded_generator(f"random features/{settings.seed}/{index}")
        whole = torch.randn(model.heads, settings.features, model.head_dim, generator=generator, device="cpu")
        rank = parallel_state.get_tensor_model_parallel_rank()
        mine = whole[rank * heads : (rank + 1) * heads].to(self.positions.device, copy=True)
        self.register_buffer("directions", mine, persistent=False)

    def forward(
        self, x: Tensor, memory: Memory, starts: Tensor, dropout: Dropout | None, fed_back: None = None
    ) -> tuple[Tensor, Memory]:
        projected = self.norm(x, dropped_into(self.projections, dropout, self.index, "attention input"))
        blocks = projected.unflatten(0, (-1, self.model.window))
        queries, keys, values = split_heads(blocks, 3, self.model.head_dim)
        directions = widened(self.directions)
        asked, offered = (features(self._scaled(part), directions) for part in (queries, keys))
        seen = with_previous_block(offered, memory["features"], starts)
        heard = widened(with_previous_block(values, memory["values"], starts))
        read, sums = near_and_far(
            asked,
            seen,
            torch.cat([heard, torch.ones_like(heard[..., :1])], -1),
            widened(self.positions),
            memory["sums"],
            starts,
            self.settings.method == "fft",
        )
        y = (read[..., :-1] / read[..., -1:]).to(blocks.dtype)
        kept = {"features": offered[:, -1].transpose(1, 2), "values": values[:, -1].transpose(1, 2), "sums": sums}
        return self.output(merge_heads([y]).flatten(0, 1)), kept

    def _scaled(self, x: Tensor) -> Tensor:
        """Scale to unit length, or as in softmax attention: q·k / sqrt(E)."""
        return unit_length(x) if self.settings.normalized else widened(x) * x.shape[-1] ** -0.25

    def statistics(self, memories: Sequence[Memory]) -> Iterator[tuple[str, Tensor]]:
        for memory in memories:
            yield "state_rms", memory["sums"].double()
            yield "state_max", memory["sums"].double()

    def statistics_parameters(self) -> list[nn.Parameter]:
        return []
