"""Reads what the stream schedule lists into arrays of tokens, padded to whole blocks."""

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from brt_dist.data.stream_schedule import Cursor, StepReads

_POLL_SECONDS = 0.1  # how soon a blocked thread notices that it was closed


class Schedule(Protocol):
    """What a reader needs from a stream schedule (see `StreamSchedule`)."""

    segment: int
    window: int
    blocks: int

    def step(self, cursor: Cursor) -> tuple[StepReads, Cursor]: ...


class Documents(Protocol):
    """What a reader needs from a dataset or mixture (see `Dataset`)."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...
    def length(self, document: int) -> int: ...
    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]: ...
    def expect(self, documents: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Segments:
    """What some streams read in one step.

    Attributes:
        input: (b, N) int64, token ids; padding is 0.
        target: (b, N) int64, the next token of the same document.
        mask: (b, N) bool, positions with a target: not padding, and not the last token of a document.
        starts: (b, N/W) bool, blocks that start a document.
        streams: (b,) int64, numbers of the streams.
        beginnings: of each stream, for each of its `runs`, the tokens of the document before it; empty if not read.
    """

    input: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.bool_]
    streams: npt.NDArray[np.int64]
    beginnings: tuple[tuple[npt.NDArray[Any], ...], ...] = ()


def runs(starts: npt.NDArray[np.bool_]) -> list[range]:
    """Blocks of a segment that are contiguous in one document, from the blocks (N/W,) that start one."""
    firsts = np.union1d([0], np.flatnonzero(starts)).tolist()
    return [range(first, end) for first, end in zip(firsts, [*firsts[1:], len(starts)], strict=True)]


class SegmentReader:
    """Reads what a schedule lists.  Stateless: any step may be read at any time, at the same cost.

    Args:
        dataset: to read.
        schedule: lists what to read.
        beginnings: also read what precedes a segment in its documents; the cost grows with their length.
    """

    def __init__(self, dataset: Documents, schedule: Schedule, beginnings: bool = False) -> None:
        self.dataset = dataset
        self.schedule = schedule
        self.beginnings = beginnings

    def read(self, plan: StepReads, streams: Sequence[int]) -> Segments:
        """The segments of `streams`, in that order."""
        rows = np.asarray(streams, dtype=np.int64)
        shape = (rows.size, self.schedule.segment)
        token, target = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.bool_)
        starts = plan.starts[rows]
        before: list[tuple[npt.NDArray[Any], ...]] = []
        for row, stream in enumerate(rows.tolist()):
            found = []
            for run in runs(starts[row]):
                first = run.start
                document, offset = int(plan.document[stream, first]), int(plan.offset[stream, first])
                count = int(plan.length[stream, first : run.stop].sum())
                # one token more than is read: the last target is beyond the segment, unless the document ends here
                available = min(count + 1, self.dataset.length(document) - offset)
                ids = self.dataset.tokens(document, offset, available)
                begin = first * self.schedule.window
                token[row, begin : begin + count] = ids[:count]
                target[row, begin : begin + available - 1] = ids[1:]
                mask[row, begin : begin + available - 1] = True
                if self.beginnings:
                    found.append(self.dataset.tokens(document, 0, offset) if offset and count else token[row, :0])
            if self.beginnings:
                before.append(tuple(found))
        return Segments(token, target, mask, starts, rows, tuple(before))


class Prefetcher:
    """Reads the next steps in a background thread while the current one runs.  Call `close` at the end.

    Args:
        reader: reads the segments.
        schedule: the stream schedule.
        cursor: of the first step.
        streams: numbers of the streams to read.
        depth: how many steps may be buffered.
        prefetch_steps: how many steps ahead a remote dataset prefetches; 0: no prefetch.
    """

    def __init__(
        self,
        reader: SegmentReader,
        schedule: Schedule,
        cursor: Cursor,
        streams: Sequence[int],
        depth: int = 2,
        prefetch_steps: int = 0,
    ) -> None:
        self._prefetch_steps = prefetch_steps
        self._reader = reader
        self._schedule = schedule
        self._streams = list(streams)
        self._ready: queue.Queue[tuple[StepReads, Segments, Cursor] | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(cursor,), name="prefetcher", daemon=True)
        self._thread.start()

    def next(self) -> tuple[StepReads, Segments, Cursor, float]:
        """Wait for the next step.  An error of the thread is raised in this and every later call.

        Returns:
            What the step reads, its segments, the cursor after it, and the seconds that this call waited.

        Raises:
            RuntimeError: the prefetcher is closed.
        """
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise RuntimeError("the prefetcher is closed")
        began = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return *item, time.perf_counter() - began

    def close(self) -> None:
        """Stop the thread.  May be called more than once."""
        self._closed.set()
        self._thread.join()

    def _work(self, cursor: Cursor) -> None:
        try:
            coming = self._coming(cursor)
            while not self._closed.is_set():
                if self._prefetch_steps:
                    self._reader.dataset.expect(next(coming))
                plan, cursor = self._schedule.step(cursor)
                self._put((plan, self._reader.read(plan, self._streams), cursor))
        except BaseException as error:
            self._put(error)

    def _coming(self, cursor: Cursor) -> Iterator[list[int]]:
        """For each step, the documents of that step and the following ones, each once, in reading order."""
        steps: deque[list[int]] = deque(maxlen=self._prefetch_steps)
        while True:
            while True:
                plan, cursor = self._schedule.step(cursor)
                steps.append(plan.document[self._streams].T.ravel().tolist())
                if len(steps) == self._prefetch_steps:
                    break
            yield list(dict.fromkeys(itertools.chain.from_iterable(steps)))

    def _put(self, item: tuple[StepReads, Segments, Cursor] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
