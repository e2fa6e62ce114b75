"""Training on documents that ask questions, and counting the answers: shared by the tasks that only memory can solve.

Documents are read with the library's stream schedule, reader and engine; only questions have a loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from brt_dist.config.schema import Config
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader, Segments
from brt_dist.data.stream_schedule import StepReads, StreamSchedule
from brt_dist.model.model import BlockRecurrentModel, full_logits, token_losses
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class Questions(Protocol):
    """Documents, read like a dataset, and what is asked in them."""

    @property
    def lengths(self) -> Int64Array: ...
    def length(self, document: int) -> int: ...
    def tokens(self, document: int, offset: int, count: int) -> Int64Array: ...
    def expect(self, documents: Sequence[int]) -> None: ...

    def answers(self, plan: StepReads, segments: Segments) -> tuple[Int64Array, BoolArray]:
        """Answer (b, N), and where one is asked for (b, N)."""
        ...

    def distance(self, plan: StepReads, segments: Segments) -> Int64Array:
        """Windows of the task since what is asked for was shown (b, N); any value where nothing is asked."""
        ...


class Drawn:
    """Documents that a task draws, read like a dataset.

    Attributes:
        lengths: tokens of each document (count,).
    """

    lengths: Int64Array
    _tokens: Int64Array
    """(count, longest), filled up behind the end of shorter documents."""

    def tokens(self, document: int, offset: int, count: int) -> Int64Array:
        """As `Dataset.tokens`."""
        return self._tokens[document, offset : offset + count]

    def length(self, document: int) -> int:
        """As `Dataset.length`."""
        return int(self.lengths[document])

    def expect(self, documents: Sequence[int]) -> None:
        """As `Dataset.expect`: everything is here."""


@dataclass(frozen=True)
class Asked:
    """What a step of reading asked.

    Attributes:
        plan, segments: what the step reads.
        mask: (b, N) where an answer is asked for.
        right: (b, N) where the answer is right.
        bits: (b, N) loss there, in bits.
    """

    plan: StepReads
    segments: Segments
    mask: BoolArray
    right: BoolArray
    bits: FloatArray


@dataclass(frozen=True)
class Tally:
    """Answers by distance, in P bins.

    Attributes:
        edges: first distance of each bin, in windows of the task; the last bin has no end.
        asked, right: (P,) answers, and right ones.
        bits: (P,) sums.
    """

    edges: tuple[int, ...]
    asked: Int64Array
    right: Int64Array
    bits: FloatArray


def train_on(config: Config, documents: Questions, device: Device) -> tuple[BlockRecurrentModel, list[float]]:
    """Train on `documents`; the model, and the loss of each step in nats per question."""
    from benchmarks.models import trained_model
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.micro_batches import StepInput

    streams = config.data.streams
    schedule = StreamSchedule(
        documents.lengths,
        streams=streams,
        segment=config.data.segment,
        window=config.model.window,
        seed=config.run.seed,
    )
    reader, cursor = SegmentReader(documents, schedule), schedule.start()
    engine, losses = build_engine(config, Layout.of(config, 0), device), []
    try:
        for number in range(1, config.run.steps + 1):
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, range(streams))
            target, mask = documents.answers(plan, segments)
            step = StepInput(
                number=number,
                starts=torch.from_numpy(segments.starts),
                tokens=torch.from_numpy(segments.input),
                target=torch.from_numpy(target),
                mask=torch.from_numpy(mask),
                loss_tokens=int(mask.sum()),
            )
            rate = learning_rate(number, config.run.steps, config.optimizer)
            losses.append(engine.train_step(step, rate).loss)
        return trained_model(engine), losses
    finally:
        engine.close()


@torch.no_grad()
def asked(model: BlockRecurrentModel, config: Config, documents: Questions) -> Iterator[Asked]:
    """Read all documents once, each from its beginning, with memory carried."""
    streams, window = min(config.data.streams, len(documents.lengths)), config.model.window
    schedule = OnePassSchedule(documents.lengths, streams=streams, segment=config.data.segment, window=window)
    reader, cursor, memory = SegmentReader(documents, schedule), schedule.start(), model.blank_memory(streams)
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, range(streams))
        target, mask = documents.answers(plan, segments)
        logits, memory = model(torch.from_numpy(segments.input), memory, torch.from_numpy(segments.starts))
        answer = full_logits(logits, config.model.vocab_size or 0).argmax(-1).numpy()
        bits = token_losses(logits, torch.from_numpy(target)).numpy() / np.log(2)
        yield Asked(plan, segments, mask, (answer == target) & mask, np.where(mask, bits, 0.0))


def tally(model: BlockRecurrentModel, config: Config, documents: Questions, edges: tuple[int, ...]) -> Tally:
    """Ask everything that `documents` ask; `edges` begin with 0."""
    shape = len(edges)
    count, right, bits = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    for found in asked(model, config, documents):
        distance = documents.distance(found.plan, found.segments)[found.mask]
        bins = np.searchsorted(edges, distance, side="right") - 1
        np.add.at(count, bins, 1)
        np.add.at(right, bins, found.right[found.mask])
        np.add.at(bits, bins, found.bits[found.mask])
    return Tally(edges, count, right, bits)


def in_tokens(blocks: npt.NDArray[np.generic], window: int) -> Int64Array:
    """(b, nb) -> (b, N)"""
    return np.repeat(blocks, window, 1)


def positions(plan: StepReads, window: int) -> Int64Array:
    """Position of each token in its document (b, N)."""
    return in_tokens(plan.offset, window) + np.tile(np.arange(window), plan.offset.shape[1])
