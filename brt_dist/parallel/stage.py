"""The part of the model that one rank holds: a range of layers, and what they need besides hidden states.

Only hidden states pass from layer to layer and from stage to stage.  Whatever else a layer needs in a forward pass (its
memory, where documents start, the keys of its dropout) it takes from its rank's :class:`StageContext`, which every
stage fills by itself from the schedule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from brt_dist.model.dropout import Dropout
from brt_dist.model.layers import Layer
from brt_dist.model.memory import Memory, carried
from brt_dist.model.model import FinalNorm
from brt_dist.model.oracle_heads import OracleLabels
from brt_dist.model.recompute import Recompute, calls
from brt_dist.parallel.stream_memory import StreamMemory


@dataclass(frozen=True)
class MicroBatch:
    """What all stages know of a micro-batch before any of it arrives.

    Attributes:
        starts: (b, N/W) bool, blocks that begin a document.
        dropout: rate and keys of the masks, or None in evaluation.
        target: (b, N) int64, if the last stage should return nats per token (b, N) instead of this rank's logits
            (N, b, V/tp).
        counted: (b, N) bool, if it should return the sum of the nats of these tokens.
        source: (b, N) int64, what the encoder reads, in a model that has one.
        labels: of the heads of an oracle, in a model that has them.
    """

    starts: Tensor
    dropout: Dropout | None
    target: Tensor | None = None
    counted: Tensor | None = None
    source: Tensor | None = None
    labels: OracleLabels | None = None


class StageContext:
    """The current step, as the layers of this rank see it.

    Forwards run in the order of the micro-batches, in every schedule that we use; `advance` is called before each.
    """

    def __init__(self, memory: StreamMemory) -> None:
        self.memory = memory
        self._micro_batches: Sequence[MicroBatch] = ()
        self._position = -1

    def begin(self, micro_batches: Sequence[MicroBatch], memory: StreamMemory) -> None:
        """A new step, or evaluation step, with the memory that it reads and writes."""
        self.memory = memory
        self._micro_batches = micro_batches
        self._position = -1
        memory.prefetch(0)

    def advance(self) -> None:
        """The forward pass of the next micro-batch begins."""
        self._position += 1
        self.memory.prefetch(self._position + 1)

    @property
    def position(self) -> int:
        """Number of the micro-batch whose forward runs."""
        return self._position

    @property
    def micro_batch(self) -> MicroBatch:
        return self._micro_batches[self._position]

    def read(self, layer: int) -> Memory:
        return self.memory.read(layer, self._position)

    def write(self, layer: int, memory: Memory) -> None:
        self.memory.write(layer, self._position, memory)


class StreamLayer(nn.Module):
    """A layer of the model with its memory attached: (N, b, D) -> (N, b, D).

    Recompute is done here and not by the pipeline: the layer is a pure function of tensors that are all arguments, so
    running it again in backward, when another micro-batch may be in forward, gives the same result.
    """

    def __init__(self, build: Callable[[], Layer], context: StageContext, recompute: Recompute) -> None:
        super().__init__()
        self.layer = build()
        self._context = context
        self._calls = calls(recompute)

    def forward(self, x: Tensor) -> Tensor:
        index, micro_batch = self.layer.index, self._context.micro_batch
        memory = self._context.read(index)
        x, memory = self._calls.layer(
            self.layer, x, memory, micro_batch.starts, micro_batch.dropout, None, self._calls.mixer
        )
        self._context.write(index, carried(memory))
        return x


class StreamNorm(nn.Module):
    """The norm after the last layer, with its dropout: (N, b, D) -> (N, b, D)."""

    def __init__(self, build: Callable[[], FinalNorm], context: StageContext) -> None:
        super().__init__()
        self.norm = build()
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        micro_batch = self._context.micro_batch
        return cast(Tensor, self.norm(x, micro_batch.dropout, micro_batch.labels))
