"""The stream schedule: which document each stream reads at which block, and nothing else.

Indices, defined once:
  stream b    row of the global batch, 0 <= b < B, the same in every layout
  block       W tokens (the window); a segment has nb = N / W blocks; a document of T tokens takes ceil(T / W)
  block time  step * nb + block: the clock that all streams share
  ordinal g   epoch * K + position: the g-th document that is handed out of a dataset; `EpochOrder` names it
  part        number of the dataset in a mixture; each part counts its own ordinals; `Deal` says whose turn it is

At each block time, the streams whose document has ended, or that have none yet, take the next documents in the order
of their numbers: first what other streams had to return, then new ones.  So the whole state is the cursor: every rank
computes all B streams from the lengths of the documents alone, without communication, and no step costs more than
another.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brt_dist.data.cursor import NOTHING, Cursor
from brt_dist.data.epoch_order import Int64Array
from brt_dist.data.mixture_order import Deal
from brt_dist.errors import DataError


@dataclass(frozen=True)
class StepReads:
    """What one step reads, for all streams, in blocks: (B, nb) with nb = N/W.

    Attributes:
        document: (B, nb) int64, index in the dataset; in a mixture, documents are numbered consecutively.
        offset: (B, nb) int64, first token of the block in the document.
        length: (B, nb) int64, input tokens of the block, 1..W; the rest is padding.
        starts: (B, nb) bool, whether the block starts a document, or the rest of one whose stream was dropped; memory
            is cleared there.
        loss_tokens: tokens of the whole global batch with a target (all but the last of each document).
    """

    document: Int64Array
    offset: Int64Array
    length: Int64Array
    starts: npt.NDArray[np.bool_]
    loss_tokens: int


class StreamSchedule:
    """Maps a cursor to what the step reads and the next cursor; a pure function of its arguments.

    Args:
        lengths: tokens of each document (K,), at least 1; of a mixture, one such array per dataset.
        streams: number of streams [B]; there must be a document for each at the start.
        segment: tokens per stream and step [N], a multiple of window.
        window: tokens per block [W].
        seed: of the order of documents.
        weights: of a mixture, the share of the tokens of each dataset (see `Deal`).
        shards: documents of the shards of each dataset, needed if `together` is not 0.
        together: how many shards are shuffled together; 0: all documents (see `ShardOrder`).

    Raises:
        DataError: these cannot be scheduled.
    """

    def __init__(
        self,
        lengths: Int64Array | Sequence[Int64Array],
        *,
        streams: int,
        segment: int,
        window: int,
        seed: int,
        weights: Sequence[float] = (1.0,),
        shards: Sequence[Int64Array] = (),
        together: int = 0,
    ) -> None:
        if streams < 1 or window < 1 or segment < 1:
            raise DataError(f"streams, segment and window must be positive, got {streams}, {segment} and {window}")
        if segment % window:
            fits = max(window, segment // window * window)
            raise DataError(f"a segment of {segment} tokens is not a multiple of the window {window}; {fits} would be")
        parts = [lengths] if isinstance(lengths, np.ndarray) else list(lengths)
        if len(parts) != len(weights) or not parts:
            raise DataError(f"{len(weights)} weights for a mixture of {len(parts)} datasets")
        if not all(weight > 0 for weight in weights):
            raise DataError(f"weights of a mixture must be positive, got {', '.join(map(str, weights))}")
        for number, part in enumerate(parts):
            if part.ndim != 1 or part.size == 0:
                raise DataError("the dataset has no documents" if len(parts) == 1 else f"dataset {number} is empty")
        self.parts = parts
        self.weights = tuple(weights)
        self.streams = streams
        self.segment = segment
        self.window = window
        self.blocks = segment // window
        self.seed = seed
        self.shards, self.together = shards, together
        self.deal = Deal(parts, weights, seed, shards, together)
        self._check_documents()

    def resized(self, streams: int) -> "StreamSchedule":
        """The same schedule for a different number of streams; continues from a cursor resized in the same way."""
        return self._like(streams, self.segment)

    def block_by_block(self) -> "StreamSchedule":
        """The same schedule in steps of one block, which shows every document that is handed out."""
        return self._like(self.streams, self.window)

    def _like(self, streams: int, segment: int) -> "StreamSchedule":
        return StreamSchedule(
            self.parts,
            streams=streams,
            segment=segment,
            window=self.window,
            seed=self.seed,
            weights=self.weights,
            shards=self.shards,
            together=self.together,
        )

    def start(self) -> Cursor:
        """The cursor of step 0."""
        return Cursor.fresh(self.streams, len(self.parts))

    def step(self, cursor: Cursor) -> tuple[StepReads, Cursor]:
        """What the step at `cursor` reads, and the cursor of the step after it."""
        self._check(cursor)
        shape = (self.streams, self.blocks)
        plan_document, plan_offset, plan_length = (np.empty(shape, dtype=np.int64) for _ in range(3))
        starts = np.zeros(shape, dtype=np.bool_)
        ordinal, offset, part = cursor.ordinal.copy(), cursor.offset.copy(), cursor.part.copy()
        document, total = np.zeros_like(ordinal), np.zeros_like(ordinal)  # a stream with no document has "ended"
        busy = np.flatnonzero(ordinal != NOTHING)
        document[busy], total[busy] = self.deal.look_up(part[busy], ordinal[busy])
        queue = _Queue(self.deal, cursor)
        loss_tokens = 0
        for block in range(self.blocks):
            ended = np.flatnonzero(offset >= total)
            if ended.size:
                part[ended], ordinal[ended], offset[ended] = queue.take(ended.size)
                document[ended], total[ended] = self.deal.look_up(part[ended], ordinal[ended])
                starts[ended, block] = True
            left = total - offset
            plan_document[:, block] = document
            plan_offset[:, block] = offset
            plan_length[:, block] = np.minimum(left, self.window)
            loss_tokens += int(np.minimum(left - 1, self.window).sum())
            offset += self.window
        after = Cursor(ordinal, offset, part, tuple(queue.dealt), tuple(queue.tokens), tuple(queue.returned))
        return StepReads(plan_document, plan_offset, plan_length, starts, loss_tokens), after

    def at(self, step: int) -> Cursor:
        """The cursor before `step`, from the start of the run; see `skip`."""
        return self.skip(self.start(), step)

    def skip(self, cursor: Cursor, steps: int) -> Cursor:
        """The cursor `steps` steps after `cursor`, in time (documents handed out) * log(B), not steps * B.

        A run takes its cursor from a checkpoint; this is for `brt data inspect`.
        """
        if steps < 0:
            raise DataError(f"the number of steps cannot be negative, got {steps}")
        self._check(cursor)
        now = steps * self.blocks
        ordinal, part = cursor.ordinal.copy(), cursor.part.copy()
        total = np.zeros_like(ordinal)
        busy = np.flatnonzero(ordinal != NOTHING)
        total[busy] = self.deal.look_up(part[busy], ordinal[busy])[1]
        begins = -(cursor.offset // self.window)  # block times at which the documents' first tokens were, or would be
        ends = [(max(int(b) + self._blocks(t), 0), i) for i, (b, t) in enumerate(zip(begins, total, strict=True))]
        heapq.heapify(ends)  # smallest time first, then smallest stream: the order in which documents are taken
        queue = _Queue(self.deal, cursor)
        following = queue.walk()
        while ends[0][0] < now:
            time, stream = ends[0]
            part[stream], ordinal[stream], offset, length = next(following)
            begins[stream] = time - offset // self.window
            heapq.heapreplace(ends, (int(begins[stream]) + self._blocks(length), stream))
        offset_now = np.where(ordinal == NOTHING, 0, (now - begins) * self.window)
        return Cursor(ordinal, offset_now, part, tuple(queue.dealt), tuple(queue.tokens), tuple(queue.returned))

    def _blocks(self, tokens: int) -> int:
        return -(-int(tokens) // self.window)

    def _check_documents(self) -> None:
        fit = self.deal.documents_until_repeat(self.streams)
        if fit == self.streams:
            return
        documents = sum(part.size for part in self.parts)
        if len(self.parts) == 1:
            raise DataError(
                f"{self.streams} streams need at least as many documents, but the dataset has {documents}: "
                f"use at most {fit} streams, or split the corpus into more documents"
            )
        raise DataError(
            f"{self.streams} streams: with these weights two of them would start with the same document of the mixture "
            f"(its datasets have {', '.join(str(part.size) for part in self.parts)} documents): use at most "
            f"{fit} streams, or lower the weights of the datasets with few documents"
        )

    def _check(self, cursor: Cursor) -> None:
        if cursor.streams != self.streams:
            raise DataError(
                f"the cursor has {cursor.streams} streams, but this schedule has {self.streams}: "
                f"use `cursor.resized({self.streams})`"
            )
        if len(cursor.next) != len(self.parts):
            raise DataError(f"the cursor has {len(cursor.next)} datasets, but this schedule has {len(self.parts)}")
        returned = any(offset % self.window for _, _, offset in cursor.returned)
        if int(cursor.offset.min()) < 0 or (cursor.offset % self.window).any() or returned:
            raise DataError(f"the cursor does not fit a window of {self.window} tokens")


class _Queue:
    """The documents that streams take next, from a cursor on: returned ones, then new ones."""

    def __init__(self, deal: Deal, cursor: Cursor) -> None:
        self._deal = deal
        self.dealt, self.tokens, self.returned = list(cursor.next), list(cursor.tokens), list(cursor.returned)

    def take(self, count: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Part, ordinal and offset (count,) of the next documents."""
        old = [place[:3] for place in self._take_returned(count)]
        part, ordinal = self._deal.take(self.dealt, self.tokens, count - len(old))
        rows = np.array(old, dtype=np.int64).reshape(-1, 3)
        zeros = np.zeros(count - len(old), dtype=np.int64)
        joined = (np.concatenate(pair) for pair in ((rows[:, 0], part), (rows[:, 1], ordinal), (rows[:, 2], zeros)))
        return next(joined), next(joined), next(joined)

    def walk(self) -> Iterator[tuple[int, int, int, int]]:
        """Infinite iterator over (part, ordinal, offset, tokens) of the next documents."""
        while old := self._take_returned(1):
            yield old[0]
        for part, ordinal, length in self._deal.walk(self.dealt, self.tokens):
            self.dealt[part] += 1
            self.tokens[part] += length
            yield part, ordinal, 0, length

    def _take_returned(self, count: int) -> list[tuple[int, int, int, int]]:
        """The first `count` returned documents, with their lengths, without those that had just ended."""
        taken: list[tuple[int, int, int, int]] = []
        while self.returned and len(taken) < count:
            part, ordinal, offset = self.returned.pop(0)
            length = int(self._deal.look_up(np.array([part]), np.array([ordinal]))[1][0])
            if offset < length:
                taken.append((part, ordinal, offset, length))
        return taken
