"""The stream schedule of an evaluation: every document once, in the order of the dataset.

It has the interface of `StreamSchedule`, with two differences: there may be fewer documents than streams, and a stream
for which no document is left idles; its blocks have length 0 and no targets.
"""

from dataclasses import replace

import numpy as np

from brt_dist.data.cursor import Cursor
from brt_dist.data.epoch_order import Int64Array
from brt_dist.data.stream_schedule import StepReads
from brt_dist.errors import DataError


class OnePassSchedule:
    """Documents 0..K-1 handed out once; see `StreamSchedule` for the arguments and for the order of hand-outs."""

    def __init__(self, lengths: Int64Array, *, streams: int, segment: int, window: int) -> None:
        if segment % window:
            raise DataError(f"a segment of {segment} tokens is not a multiple of the window {window}")
        self.lengths = lengths
        self.streams = streams
        self.segment = segment
        self.window = window
        self.blocks = segment // window

    def start(self) -> Cursor:
        """The cursor of step 0."""
        return replace(Cursor.fresh(self.streams), ordinal=np.arange(self.streams, dtype=np.int64))

    def is_finished(self, cursor: Cursor) -> bool:
        """Whether every document was handed out and read to its end."""
        return bool((self._left(cursor.ordinal, cursor.offset) <= 0).all()) and int(cursor.ordinal.max()) + 1 >= len(
            self.lengths
        )

    def step(self, cursor: Cursor) -> tuple[StepReads, Cursor]:
        """What the step at `cursor` reads, and the cursor of the step after it."""
        shape = (self.streams, self.blocks)
        document, offsets, length = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        ordinal, offset = cursor.ordinal.copy(), cursor.offset.copy()
        following = int(ordinal.max()) + 1
        loss_tokens = 0
        for block in range(self.blocks):
            taking = np.flatnonzero(self._left(ordinal, offset) <= 0)[: max(0, len(self.lengths) - following)]
            ordinal[taking] = np.arange(following, following + taking.size)
            following += taking.size
            offset[taking] = 0
            left = self._left(ordinal, offset)
            busy = left > 0
            document[busy, block] = ordinal[busy]
            offsets[busy, block] = offset[busy]
            length[busy, block] = np.minimum(left[busy], self.window)
            loss_tokens += int(np.minimum(left[busy] - 1, self.window).sum())
            offset[busy] += self.window
        # an idle block counts as a start, so that nothing is carried into it
        plan = StepReads(document, offsets, length, offsets == 0, loss_tokens)
        return plan, replace(cursor, ordinal=ordinal, offset=offset)

    def _left(self, ordinal: Int64Array, offset: Int64Array) -> Int64Array:
        """Unread tokens of each stream's document, (B,); at most 0 if it has ended or there is none."""
        real = np.minimum(ordinal, len(self.lengths) - 1)
        left = np.where(ordinal < len(self.lengths), np.asarray(self.lengths[real]) - offset, 0)
        return left.astype(np.int64)
