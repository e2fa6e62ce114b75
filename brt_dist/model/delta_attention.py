"""A layer of the delta rule: maps, short convolutions, the rule, a norm of each head and perhaps an output gate."""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model import fla_kernels
from brt_dist.model.convolution import ShortConvolution
from brt_dist.model.delta_rule import delta_rule
from brt_dist.model.dropout import Dropout
from brt_dist.model.linear import RowLinear
from brt_dist.model.memory import Memory
from brt_dist.model.norms import RMSNorm, rms_normed, unit_length, widened
from brt_dist.model.parameters import declare, ones
from brt_dist.model.regions import RegionLinear, enter, shared

if TYPE_CHECKING:
    from brt_dist.model.mixers.delta import DeltaMixer

CONVOLUTION_STD = 0.02


class DeltaAttention(nn.Module):
    """See `mixers/delta.py`.

    Rows of the maps are ordered by head: (head, [query, key], E), (head, M), (head, [rate, decay]).
    """

    def __init__(self, settings: "DeltaMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.settings, self.model, self.index, self.parallel = settings, model, index, parallel
        heads, size, values = model.heads, model.head_dim, settings.value_size(model)
        self._sizes = (size, size, values)
        self.norm = RMSNorm(model.width)
        self.queries_keys = RegionLinear(model.width, 2 * heads * size, parallel, stacked=(2, size))
        self.values = RegionLinear(model.width, heads * values, parallel)
        self.rates = RegionLinear(model.width, settings.rates * heads, parallel, stacked=(settings.rates, 1))
        self.gate = RegionLinear(model.width, heads * values, parallel) if settings.gate else None
        ranks = parallel.tensor_model_parallel_size
        self.convolution = ShortConvolution(heads * sum(self._sizes), settings.convolution, ranks, CONVOLUTION_STD)
        self.decay = settings.build_decay(heads // ranks)
        self.head_norm = HeadNorm(values, parallel)
        self.output = RowLinear(heads * values, model.width, parallel)

    def forward(
        self, x: Tensor, memory: Memory, starts: Tensor, dropout: Dropout | None, fed_back: None = None
    ) -> tuple[Tensor, Memory]:
        x = self.norm(x)
        if dropout is not None:
            x = dropout.activations(x, self.index, "attention input")
        x = enter(x, self.parallel)
        convolved, tail = self._convolved(x, memory["tail"], starts)
        queries, keys, values = convolved.split(self._sizes, -1)
        rates = self.rates(x).unflatten(-1, (-1, self.settings.rates))
        beta = torch.sigmoid(widened(rates[..., 0])) * (2 if self.settings.negative_eigenvalues else 1)
        window = len(x) // starts.shape[1]
        chunk = gcd(window, self.settings.chunk)
        decays = None if self.decay is None else _chunked(self.decay(rates[..., 1]), chunk)
        rule = fla_kernels.delta_rule if fla_kernels.usable(values) else delta_rule
        read, state = rule(
            _chunked(unit_length(queries), chunk),
            _chunked(unit_length(keys), chunk),
            _chunked(values, chunk),
            _chunked(beta, chunk),
            decays,
            memory["state"],
            functional.pad(starts.unsqueeze(-1), (0, window // chunk - 1)).flatten(1),
        )
        read = self.head_norm(read).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (N, b, h, M)
        if self.gate is not None:
            read = read * functional.silu(self.gate(x)).view_as(read)
        return self.output(read.flatten(-2)), {"state": state, "tail": tail}

    def _convolved(self, x: Tensor, tail: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values (N, b, h, 2E + M) of tokens x (N, b, D), and the inputs that are carried."""
        size, values = self._sizes[0], self._sizes[2]
        maps = (self.queries_keys(x).unflatten(-1, (-1, 2 * size)), self.values(x).unflatten(-1, (-1, values)))
        heads = torch.cat(maps, -1)
        blocks = heads.flatten(-2).unflatten(0, (starts.shape[1], -1))
        convolved, tail_after = self.convolution(blocks, tail.flatten(2), starts)
        return functional.silu(convolved).flatten(0, 1).view_as(heads), tail_after.unflatten(-1, heads.shape[2:])

    def statistics(self, memories: Sequence[Memory]) -> Iterator[tuple[str, Tensor]]:
        for memory in memories:
            yield "state_rms", memory["state"].double()
            yield "state_max", memory["state"].double()

    def statistics_parameters(self) -> list[nn.Parameter]:
        return []


class HeadNorm(nn.Module):
    """RMSNorm over a head, whose weight all heads share."""

    def __init__(self, size: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.parallel = parallel
        self.weight = nn.Parameter(torch.empty(size))
        declare(self.weight, ones())

    def forward(self, x: Tensor) -> Tensor:
        return rms_normed(x, shared(self.weight, self.parallel))


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(N, b, h, ...) -> (b, t, h, C, ...)."""
    return x.unflatten(0, (-1, chunk)).movedim((2, 0, 3, 1), (0, 1, 2, 3))
