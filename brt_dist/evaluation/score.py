"""Loss of a trained model on whole documents.

Every document is read from its first token to its last with memory carried, and each of its tokens but the first is
predicted; so the result does not depend on the segment, on how many streams are read at a time, or on the layout.
(Training evaluates with `evaluate`, on a limited number of segments.)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.data.stream_schedule import StepReads
from brt_dist.errors import ConfigError, DataError
from brt_dist.evaluation.forgetting import MemoryUse, clear, part_of
from brt_dist.evaluation.layer_tally import LayerTally, statistics_by_layer
from brt_dist.evaluation.oracle_reading import OracleReading
from brt_dist.evaluation.oracle_tally import OracleScores
from brt_dist.evaluation.positions import PositionBins, by_position
from brt_dist.events import LayerStatistics, PositionLoss
from brt_dist.model.layers import Layer
from brt_dist.model.memory import Memory
from brt_dist.model.model import BlockRecurrentModel

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """The loss on some documents.

    Attributes:
        document_nats: (K,) sum of the nats of each document.
        document_tokens: (K,) predicted tokens of each: all but the first.
        positions: mean loss by position in the document.
        layers: statistics of layers with a state (`Mixer.statistics`, `Mixer.watched`), if asked for.
        oracle: how well an oracle model knows its language, if asked for.
    """

    document_nats: Float64Array
    document_tokens: Int64Array
    positions: tuple[PositionLoss, ...]
    layers: tuple[LayerStatistics, ...] = ()
    oracle: OracleScores | None = None

    @property
    def nats(self) -> float:
        return float(self.document_nats.sum())

    @property
    def tokens(self) -> int:
        return int(self.document_tokens.sum())

    @property
    def bits_per_token(self) -> float:
        return self.nats / self.tokens / math.log(2)

    @property
    def standard_error(self) -> float | None:
        """Standard error of bits per token, over documents (ratio estimator); None for a single document."""
        count = len(self.document_nats)
        if count < 2:
            return None
        residuals = self.document_nats - self.nats / self.tokens * self.document_tokens
        variance = count / (count - 1) * float((residuals**2).sum())
        return math.sqrt(variance) / self.tokens / math.log(2)

    def bits_per_byte(self, text_bytes: int) -> float:
        """Args:
        text_bytes: of the predicted text in UTF-8.
        """
        return self.nats / math.log(2) / text_bytes

    def word_perplexity(self, words: int) -> float:
        """Perplexity normalised by words, as PG19 is reported: exp(nats / words); infinite where it overflows.

        Args:
            words: of the documents, split at white space.
        """
        try:
            return math.exp(self.nats / words)
        except OverflowError:
            return math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for another process."""
        return {
            "document_nats": self.document_nats.tolist(),
            "document_tokens": self.document_tokens.tolist(),
            "positions": [asdict(position) for position in self.positions],
            "layers": [asdict(layer) for layer in self.layers],
            "oracle": None if self.oracle is None else asdict(self.oracle),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Score":
        """Back from :meth:`to_json`."""
        return cls(
            np.array(found["document_nats"], np.float64),
            np.array(found["document_tokens"], np.int64),
            tuple(PositionLoss(**position) for position in found["positions"]),
            tuple(LayerStatistics(**layer) for layer in found["layers"]),
            None if found["oracle"] is None else OracleScores(**found["oracle"]),
        )


class Reading(Protocol):
    """Reads documents through a model, one step after the other, with its own memory."""

    def read(self, plan: StepReads) -> Float64Array:
        """Nats of each block of a step, (B, N/W)."""
        ...


@torch.no_grad()
def score(
    network: BlockRecurrentModel,
    documents: Documents,
    *,
    segment: int,
    streams: int,
    memory_use: MemoryUse = "carried",
    layers: Sequence[int] | None = None,
    watch: bool = False,
    oracle: Oracle | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Score:
    """Read all documents once, in one process.

    Args:
        network: in evaluation mode.
        documents: to read.
        segment: tokens read of a stream at a time, a multiple of the window.
        streams: documents read at a time.
        memory_use: carry memory, or clear all or a part of it at the start of every segment; how much worse that is
            shows what it is worth.
        layers: those of which a part is cleared; None: all.
        watch: also watch layers with a state.
        oracle: the network's, to also count legal predictions; all documents are words of its language.
        on_tokens: called after each step with the number of tokens predicted in it.

    Raises:
        ConfigError: `segment` is not a multiple of the window.
        DataError: no document has two tokens, so nothing can be predicted.
    """
    streams = min(streams, len(documents.lengths))
    schedule = one_pass(documents, segment, streams, network.config.window)
    with ExitStack() as stack:
        judge = None if oracle is None else OracleReading(oracle, network, documents, streams, stack)
        reader = SegmentReader(documents, schedule, beginnings=oracle is not None)
        reading = NetworkReading(network, reader, memory_use, layers, judge)
        if watch:
            stack.enter_context(reading.watching())
        found = add_up(documents, schedule, reading, on_tokens)
    return replace(
        found,
        layers=reading.tally.result() if watch else (),
        oracle=None if judge is None else judge.result(),
    )


def one_pass(documents: Documents, segment: int, streams: int, window: int) -> OnePassSchedule:
    """The schedule that reads all documents once.

    Raises:
        ConfigError: `segment` is not a multiple of the window.
        DataError: no document has two tokens, so nothing can be predicted.
    """
    if segment % window or segment < window:
        nearest = max(round(segment / window), 1) * window
        raise ConfigError(f"segment={segment} is not a multiple of model.window={window}; nearest: {nearest}")
    lengths = np.asarray(documents.lengths)
    if int(lengths.max(initial=0)) < 2:
        raise DataError("no document has two tokens or more, so there is nothing to predict")
    return OnePassSchedule(lengths, streams=streams, segment=segment, window=window)


def add_up(
    documents: Documents, schedule: OnePassSchedule, reading: Reading, on_tokens: Callable[[int], None]
) -> Score:
    """Read all documents and add up nats by document and by position."""
    lengths, cursor = np.asarray(documents.lengths), schedule.start()
    bins = PositionBins(lengths, schedule.window)
    document_nats, document_tokens = np.zeros(len(lengths)), np.zeros(len(lengths), np.int64)
    bin_nats, bin_tokens = np.zeros(len(bins.edges)), np.zeros(len(bins.edges), np.int64)
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        blocks, targets = reading.read(plan), bins.targets(plan)
        for sums, counts, index in (
            (document_nats, document_tokens, plan.document),
            (bin_nats, bin_tokens, bins.of(plan)),
        ):
            np.add.at(sums, index, blocks)
            np.add.at(counts, index, targets)
        on_tokens(plan.loss_tokens)
    return Score(document_nats, document_tokens, by_position(bins.edges, bin_nats.tolist(), bin_tokens.tolist()))


class NetworkReading:
    """A whole network in this process; see `score` for the arguments."""

    def __init__(
        self,
        network: BlockRecurrentModel,
        reader: SegmentReader,
        memory_use: MemoryUse,
        layers: Sequence[int] | None,
        judge: OracleReading | None = None,
    ) -> None:
        self._network, self._reader, self._use, self._layers = network, reader, memory_use, layers
        self._judge = judge
        self._device = next(network.parameters()).device
        self._memory: list[Memory] | None = None
        self.tally = LayerTally(statistics_by_layer(network.config), self._device)
        self._watches = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Also watch layers with a state."""
        self._watches = True
        with self.tally.watching(cast(Iterable[Layer], self._network.layers)):
            yield

    def read(self, plan: StepReads) -> Float64Array:
        read = self._reader.read(plan, range(len(plan.document)))
        starts = read.starts.copy()
        if self._use == "cleared":
            starts[:, 0] = True
        tokens, target, mask = (self._tensor(values) for values in (read.input, read.target, read.mask))
        memory = self._memory or self._network.blank_memory(len(starts))
        part = part_of(self._use)
        if part is not None:
            clear(self._network, memory, part, self._layers)
        begins = self._tensor(starts)
        if self._judge is None:
            losses, self._memory = self._network(tokens, memory, begins, None, target)
        else:
            losses, self._memory = self._judge.read(plan, read, memory, begins)
        if self._watches:
            self._look()
        return block_nats(losses, mask, plan.document.shape[1]).cpu().numpy()

    def _look(self) -> None:
        """Watch the memory after a segment."""
        for run, (layer, memory) in enumerate(zip(self._network.layers, self._memory or (), strict=True)):
            mixer: Any = layer.mixer
            if self._network.config.mixer_of(run).statistics:
                for name, values in mixer.statistics([memory]):
                    self.tally.add(run, name, values)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def block_nats(losses: torch.Tensor, mask: torch.Tensor, blocks: int) -> torch.Tensor:
    """Sums of nats (b, N) over the tokens of each block that have a target, (b, N/W) float64."""
    return losses.double().masked_fill(~mask, 0.0).unflatten(1, (blocks, -1)).sum(2)
