"""The cursor: where every stream is between two steps.  It is the whole state of the stream schedule."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brt_dist.data.epoch_order import Int64Array
from brt_dist.errors import DataError

VERSION = 1
NOTHING = -1  # ordinal of a stream that has no document yet: it takes one at the next block


@dataclass(frozen=True)
class Cursor:
    """Where every stream is, between two steps.

    Attributes:
        ordinal: (B,) int64, ordinal of the stream's document within its dataset; -1: it has no document yet.
        offset: (B,) int64, tokens of the document read so far, a multiple of W.  At or past its length the document
            has ended, and the next block starts another one.
        part: (B,) int64, index in the mixture of the document's dataset; 0 without a mixture.
        next: for each dataset, the ordinal to hand out next.
        tokens: for each dataset, the tokens of all documents handed out so far.
        returned: (part, ordinal, offset) of documents whose stream was dropped; the rest of these is read before any
            new document.
    """

    ordinal: Int64Array
    offset: Int64Array
    part: Int64Array
    next: tuple[int, ...]
    tokens: tuple[int, ...]
    returned: tuple[tuple[int, int, int], ...] = ()

    @staticmethod
    def fresh(streams: int, parts: int = 1) -> "Cursor":
        """The cursor of `streams` streams before the first step, for `parts` datasets."""
        nothing = np.full(streams, NOTHING, dtype=np.int64)
        zeros = np.zeros(streams, dtype=np.int64)
        return Cursor(nothing, zeros, zeros.copy(), (0,) * parts, (0,) * parts)

    @property
    def streams(self) -> int:
        return int(self.ordinal.size)

    def resized(self, streams: int) -> "Cursor":
        """The same position in the corpus with a different number of streams.

        Added streams take a document at the next block.  If there are fewer streams, those with the highest numbers
        are dropped: the rest of their documents goes to `returned`, and whoever reads it starts with cleared memory.

        Raises:
            DataError: `streams` is less than 1.
        """
        if streams < 1:
            raise DataError(f"a run needs at least one stream, got {streams}")
        kept = min(streams, self.streams)
        added = Cursor.fresh(streams - kept)
        dropped = zip(*(array[kept:].tolist() for array in (self.part, self.ordinal, self.offset)), strict=True)
        return replace(
            self,
            ordinal=np.concatenate([self.ordinal[:kept], added.ordinal]),
            offset=np.concatenate([self.offset[:kept], added.offset]),
            part=np.concatenate([self.part[:kept], added.part]),
            returned=self.returned + tuple(place for place in dropped if place[1] != NOTHING),
        )

    def interrupted(self) -> "Cursor":
        """The same position in the corpus, but every stream continues its document with cleared memory.

        The rest of their documents goes to `returned`, and the streams take it from there in their order.
        """
        fresh = Cursor.fresh(self.streams)
        places = zip(self.part.tolist(), self.ordinal.tolist(), self.offset.tolist(), strict=True)
        rest = tuple(place for place in places if place[1] != NOTHING)
        return replace(self, ordinal=fresh.ordinal, offset=fresh.offset, part=fresh.part, returned=rest + self.returned)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, for a checkpoint."""
        return {
            "version": VERSION,
            "ordinal": self.ordinal.tolist(),
            "offset": self.offset.tolist(),
            "part": self.part.tolist(),
            "next": list(self.next),
            "tokens": list(self.tokens),
            "returned": [list(place) for place in self.returned],
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Cursor":
        """The inverse of `to_json`.

        Raises:
            DataError: not a cursor, or one of a later version.
        """
        if isinstance(value, dict) and value.get("version", VERSION) != VERSION:
            raise DataError(f"stream cursor of version {value['version']}; this version reads {VERSION}")
        try:
            arrays = [np.array(value[name], dtype=np.int64) for name in ("ordinal", "offset", "part")]
            counts = [tuple(int(number) for number in value[name]) for name in ("next", "tokens")]
            returned = tuple((int(part), int(ordinal), int(offset)) for part, ordinal, offset in value["returned"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"not a stream cursor: {error!r}") from None
        cursor = Cursor(arrays[0], arrays[1], arrays[2], counts[0], counts[1], returned)
        if not cursor._is_consistent():
            raise DataError("not a stream cursor: its fields are inconsistent")
        return cursor

    def _is_consistent(self) -> bool:
        one_size = self.ordinal.ndim == 1 and self.ordinal.shape == self.offset.shape == self.part.shape
        if not one_size or not self.streams or not self.next or len(self.next) != len(self.tokens):
            return False
        places = [*zip(self.part.tolist(), self.ordinal.tolist(), self.offset.tolist(), strict=True), *self.returned]
        lowest = [*[NOTHING] * self.streams, *[0] * len(self.returned)]
        return min(self.tokens) >= 0 and all(
            0 <= part < len(self.next) and low <= ordinal < self.next[part] and offset >= 0
            for (part, ordinal, offset), low in zip(places, lowest, strict=True)
        )
