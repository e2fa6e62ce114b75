"""The stream schedule: which document each stream reads at which block, and nothing else.

Indices, defined once:
  stream b    row of the global batch, 0 <= b < B, the same in every layout
  block       W tokens (the window); a segment has nb = N / W blocks; a document of T tokens takes ceil(T / W)
  block time  step * nb + block: the clock that all streams share
  ordinal g   epoch * K + position: the g-th document that is handed out in the whole run; `EpochOrder` names it

Streams start with ordinals 0..B-1.  At each block time, the streams whose document has ended take the next ordinals
in the order of their numbers.  So the whole state is the cursor, and the next ordinal is max(ordinal) + 1: every rank
computes all B streams from the lengths of the documents alone, without communication, and no step costs more than
another.
"""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.errors import DataError
from pipelines.order import EpochOrder, Int64Array

_ORDINALS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Cursor:
    """Where every stream is, between two steps.

    ordinal: (B,) int64, of the document that the stream is in.  offset: (B,) int64, tokens of it that were read, a
    multiple of W; at or past its length the document has ended, and the next block begins another.
    """

    ordinal: Int64Array
    offset: Int64Array

    def to_json(self) -> dict[str, list[int]]:
        """Plain lists, for a checkpoint."""
        return {"ordinal": self.ordinal.tolist(), "offset": self.offset.tolist()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Cursor":
        """The inverse of `to_json`.  DataError: not a cursor."""
        try:
            ordinal, offset = (np.array(value[name], dtype=np.int64) for name in ("ordinal", "offset"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"not a stream cursor (two equally long lists of integers): {error!r}") from None
        if ordinal.ndim != 1 or ordinal.shape != offset.shape:
            raise DataError(f"not a stream cursor: {ordinal.shape} ordinals and {offset.shape} offsets")
        return Cursor(ordinal, offset)


@dataclass(frozen=True)
class StepPlan:
    """What one step reads.  All arrays (B, nb).

    document: index in the dataset.  offset: first token of the block in it.  length: input tokens of the block, 1..W,
    the rest is padding.  starts: whether the block begins a document.  loss_tokens: tokens of the whole global batch
    that have a target (each but the last of its document).
    """

    document: Int64Array
    offset: Int64Array
    length: Int64Array
    starts: npt.NDArray[np.bool_]
    loss_tokens: int


class StreamSchedule:
    """A pure function of (lengths, B, N, W, seed): `step` maps a cursor to what is read and the cursor after it.

    lengths: (K,) tokens of each document of the dataset, at least 1.  streams: B <= K.  segment: N tokens, a multiple
    of window.  window: W tokens.  DataError: a combination that cannot be scheduled.
    """

    def __init__(self, lengths: Int64Array, *, streams: int, segment: int, window: int, seed: int) -> None:
        if streams < 1 or window < 1 or segment < 1:
            raise DataError(f"streams, segment and window must be positive, got {streams}, {segment} and {window}")
        if segment % window:
            fits = max(window, segment // window * window)
            raise DataError(f"a segment of {segment} tokens is not a multiple of the window {window}; {fits} would be")
        if lengths.ndim != 1 or lengths.size == 0:
            raise DataError("the dataset has no documents")
        if streams > lengths.size:
            raise DataError(
                f"{streams} streams need at least as many documents, the dataset has {lengths.size}: "
                f"use at most {lengths.size} streams, or cut the corpus into more documents"
            )
        if int(lengths.min()) < 1:
            raise DataError(f"document {int(lengths.argmin())} of the dataset is empty")
        self.lengths = lengths
        self.streams = streams
        self.segment = segment
        self.window = window
        self.blocks = segment // window
        self.seed = seed
        self.order = EpochOrder(int(lengths.size), seed)

    def start(self) -> Cursor:
        """The cursor of step 0."""
        return Cursor(np.arange(self.streams, dtype=np.int64), np.zeros(self.streams, dtype=np.int64))

    def step(self, cursor: Cursor) -> tuple[StepPlan, Cursor]:
        """What the step at `cursor` reads, and the cursor of the step after it."""
        self._check(cursor)
        shape = (self.streams, self.blocks)
        plan_document, plan_offset, plan_length = (np.empty(shape, dtype=np.int64) for _ in range(3))
        ordinal, offset = cursor.ordinal.copy(), cursor.offset.copy()
        document = self.order(ordinal)
        total = np.asarray(self.lengths[document], dtype=np.int64)
        following = int(ordinal.max()) + 1
        loss_tokens = 0
        for block in range(self.blocks):
            ended = np.flatnonzero(offset >= total)
            if ended.size:
                ordinal[ended] = np.arange(following, following + ended.size)
                following += ended.size
                offset[ended] = 0
                document[ended] = self.order(ordinal[ended])
                total[ended] = self.lengths[document[ended]]
            left = total - offset
            plan_document[:, block] = document
            plan_offset[:, block] = offset
            plan_length[:, block] = np.minimum(left, self.window)
            loss_tokens += int(np.minimum(left - 1, self.window).sum())
            offset += self.window
        plan = StepPlan(plan_document, plan_offset, plan_length, plan_offset == 0, loss_tokens)
        return plan, Cursor(ordinal, offset)

    def at(self, step: int) -> Cursor:
        """The cursor before `step`, from the start of the run: documents handed out * log(B), not steps * B.

        A run takes its cursor from its checkpoint and never needs this; it serves people who ask where a stream is.
        """
        if step < 0:
            raise DataError(f"steps are counted from 0, got {step}")
        now = step * self.blocks
        durations = self._durations()
        ends = [(next(durations), stream) for stream in range(self.streams)]  # block times at which documents end
        heapq.heapify(ends)  # smallest time first, then smallest stream: the order in which ordinals are taken
        ordinal = np.arange(self.streams, dtype=np.int64)
        began = np.zeros(self.streams, dtype=np.int64)
        following = self.streams
        while ends[0][0] < now:
            time, stream = ends[0]
            ordinal[stream], began[stream] = following, time
            heapq.heapreplace(ends, (time + next(durations), stream))
            following += 1
        return Cursor(ordinal, (now - began) * self.window)

    def _durations(self) -> Iterator[int]:
        """Blocks that the documents with ordinals 0, 1, 2, ... take."""
        for first in itertools.count(0, _ORDINALS_AT_ONCE):
            documents = self.order(np.arange(first, first + _ORDINALS_AT_ONCE, dtype=np.int64))
            yield from (-(-np.asarray(self.lengths[documents], dtype=np.int64) // self.window)).tolist()

    def _check(self, cursor: Cursor) -> None:
        if cursor.ordinal.shape != (self.streams,):
            raise DataError(
                f"the cursor is of {cursor.ordinal.size} streams, this schedule has {self.streams}: "
                "a run keeps its number of streams for life"
            )
        if int(cursor.ordinal.min()) < 0 or int(cursor.offset.min()) < 0 or (cursor.offset % self.window).any():
            raise DataError(f"the cursor does not fit a window of {self.window} tokens")
