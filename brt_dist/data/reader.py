"""From a step's plan to arrays of tokens: slices of the dataset, padded to whole blocks."""

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

from brt_dist.data.stream_schedule import Cursor, StepPlan

_POLL_SECONDS = 0.1  # how soon a blocked thread notices that it was closed


class Schedule(Protocol):
    """What is needed of a schedule: its shape, and what each step reads (see `StreamSchedule`)."""

    segment: int
    window: int
    blocks: int

    def step(self, cursor: Cursor) -> tuple[StepPlan, Cursor]: ...


class Documents(Protocol):
    """What is needed of a dataset or a mixture (see `Dataset`)."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...
    def length(self, document: int) -> int: ...
    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]: ...
    def expect(self, documents: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Segments:
    """What some streams read in one step.

    input: (b, N) int64 token ids, padding is 0.  target: (b, N) int64, the next token of the same document.
    mask: (b, N) bool, where there is a target: not at padding, not at the last token of a document.
    starts: (b, nb) bool, blocks that begin a document.  streams: (b,) int64, their numbers.
    """

    input: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.bool_]
    streams: npt.NDArray[np.int64]


class SegmentReader:
    """Reads what a schedule says.  Keeps no position: any plan may be read at any time, at the same cost."""

    def __init__(self, dataset: Documents, schedule: Schedule) -> None:
        self.dataset = dataset
        self.schedule = schedule

    def read(self, plan: StepPlan, streams: Sequence[int]) -> Segments:
        """The segments of `streams`, in that order."""
        rows = np.asarray(streams, dtype=np.int64)
        shape = (rows.size, self.schedule.segment)
        token, target = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.bool_)
        starts = plan.starts[rows]
        for row, stream in enumerate(rows.tolist()):
            # Blocks from one start to the next lie side by side in one document: they are one slice.
            firsts = np.union1d([0], np.flatnonzero(starts[row])).tolist()
            for first, end in zip(firsts, [*firsts[1:], self.schedule.blocks], strict=True):
                document, offset = int(plan.document[stream, first]), int(plan.offset[stream, first])
                count = int(plan.length[stream, first:end].sum())
                # One more than is read: the last target lies beyond the segment, unless the document ends here.
                available = min(count + 1, self.dataset.length(document) - offset)
                ids = self.dataset.tokens(document, offset, available)
                begin = first * self.schedule.window
                token[row, begin : begin + count] = ids[:count]
                target[row, begin : begin + available - 1] = ids[1:]
                mask[row, begin : begin + available - 1] = True
        return Segments(token, target, mask, starts, rows)


class Prefetcher:
    """Reads the next steps in one background thread while the current one runs.

    reader, schedule: as they are.  cursor: of the first step.  streams: those that are read.  depth: steps that may
    lie ready.  ahead: steps for which a remote dataset is told what it will have to have.  Call `close` at the end.
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
        self._ready: queue.Queue[tuple[StepPlan, Segments, Cursor] | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(cursor,), name="prefetcher", daemon=True)
        self._thread.start()

    def next(self) -> tuple[StepPlan, Segments, Cursor, float]:
        """The plan and the segments of the next step, the cursor after it, and the seconds that this call waited.

        An error of the thread is raised here, in this and every later call.  RuntimeError: it was closed.
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
        """For each step, the documents of it and of those after it, each once, in the order in which they are read."""
        steps: deque[list[int]] = deque(maxlen=self._prefetch_steps)
        while True:
            while True:
                plan, cursor = self._schedule.step(cursor)
                steps.append(plan.document[self._streams].T.ravel().tolist())
                if len(steps) == self._prefetch_steps:
                    break
            yield list(dict.fromkeys(itertools.chain.from_iterable(steps)))

    def _put(self, item: tuple[StepPlan, Segments, Cursor] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
