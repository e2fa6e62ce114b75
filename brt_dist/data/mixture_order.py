"""The one global sequence of documents that streams take from: a dataset in its order, or a weighted mixture.

A mixture of M parts is dealt by one rule: the next document comes from the part with the fewest tokens handed out
for its weight; among equals, from the first.  Let H_i be the tokens handed out of part i, H their sum, L the longest
document and w_i the weights (summing to 1).  A part is only chosen when H_i <= w_i H, so H_i <= w_i H + L; and as
the last document of every other part was chosen when that part was not ahead of i, w_i H <= H_i + w_i (M-1) L.
What was read lags behind what was handed out by less than a document per stream, so of R tokens read
|R_i - w_i R| <= max(B, M-1) L at every step: exact to within one document per stream.  The sums are integers.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from brt_dist.data.epoch_order import EpochOrder, Int64Array, Order
from brt_dist.data.shard_order import ShardOrder
from brt_dist.errors import DataError

_SEED_STEP = (
    0x632BE59BD9B4E019  # parts of equal size have different orders; the first part has the order of the dataset alone
)
_AT_ONCE = 1 << 12


class Deal:
    """Deals the documents of one or several datasets; a pure function of its arguments and of what was dealt.

    Args:
        lengths: for each dataset, the tokens of its documents (K_i,); looked up only for documents that are dealt.
        weights: for each dataset, its share of the tokens, any positive numbers; read as decimal fractions, so 0.1 is
            exactly 1/10.
        seed: of the order of documents.
        shards: for each dataset, the documents of its shards (S_i,), if documents are shuffled by shards.
        together: how many shards are shuffled together; 0: all documents, whatever shard they are in.
    """

    def __init__(
        self,
        lengths: Sequence[Int64Array],
        weights: Sequence[float],
        seed: int,
        shards: Sequence[Int64Array] = (),
        together: int = 0,
    ) -> None:
        self.lengths = list(lengths)
        self.parts = len(self.lengths)
        self.firsts = np.cumsum([0, *(part.size for part in self.lengths)])[:-1].astype(np.int64)
        seeds = [seed + i * _SEED_STEP for i in range(self.parts)]
        self._orders: list[Order] = (
            [ShardOrder(shards[i], each, together) for i, each in enumerate(seeds)]
            if together
            else [EpochOrder(part.size, each) for part, each in zip(self.lengths, seeds, strict=True)]
        )
        shares = [Fraction(str(weight)) for weight in weights]
        denominator = math.lcm(*(share.denominator for share in shares))
        numerators = [int(share * denominator) for share in shares]
        # Tokens times scale is tokens over weight, on one integer scale for all parts.
        self._scales = [math.lcm(*numerators) // numerator for numerator in numerators]

    def look_up(self, part: Int64Array, ordinal: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Look up documents.

        Args:
            part: (n,) index of the dataset.
            ordinal: (n,) ordinal within it.

        Returns:
            Documents (n,), numbered consecutively over all datasets, and their tokens (n,).

        Raises:
            DataError: a document is empty.
        """
        if self.parts == 1:
            document = self._orders[0](ordinal)
            length = np.asarray(self.lengths[0][document], dtype=np.int64)
        else:
            document, length = np.empty_like(ordinal), np.empty_like(ordinal)
            for number in np.unique(part).tolist():
                rows = np.flatnonzero(part == number)
                inside = self._orders[number](ordinal[rows])
                document[rows] = inside + self.firsts[number]
                length[rows] = self.lengths[number][inside]
        if length.size and int(length.min()) < 1:
            raise DataError(f"document {int(document[length.argmin()])} of the dataset is empty")
        return document, length

    def take(self, dealt: list[int], tokens: list[int], count: int) -> tuple[Int64Array, Int64Array]:
        """Deal the next `count` documents.

        Args:
            dealt: documents of each dataset dealt so far; updated in place.
            tokens: their tokens; updated in place.
            count: how many documents.

        Returns:
            Dataset and ordinal (count,) of each.
        """
        candidates = [dealt[i] + np.arange(count, dtype=np.int64) for i in range(self.parts)]
        lengths = [self.look_up(np.full(count, i, dtype=np.int64), candidates[i])[1] for i in range(self.parts)]
        part = np.zeros(count, dtype=np.int64)
        if self.parts == 1:
            dealt[0] += count
            tokens[0] += int(lengths[0].sum())
            return part, candidates[0]
        ordinal, first = np.empty(count, dtype=np.int64), tuple(dealt)
        for row in range(count):
            i = min(range(self.parts), key=lambda i: tokens[i] * self._scales[i])
            part[row], ordinal[row] = i, dealt[i]
            tokens[i] += int(lengths[i][dealt[i] - first[i]])
            dealt[i] += 1
        return part, ordinal

    def documents_until_repeat(self, count: int) -> int:
        """How many of the first `count` documents are dealt before one repeats."""
        if self.parts == 1:
            return min(count, self.lengths[0].size)
        part, ordinal = self.take([0] * self.parts, [0] * self.parts, count)
        sizes = np.array([lengths.size for lengths in self.lengths])
        again = np.flatnonzero(ordinal >= sizes[part])
        return int(again[0]) if again.size else count

    def walk(self, dealt: Sequence[int], tokens: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Infinite iterator over (dataset, ordinal, tokens) of the following documents."""
        now, sums = list(dealt), list(tokens)
        while True:
            part, ordinal = self.take(now, sums, _AT_ONCE)
            yield from zip(part.tolist(), ordinal.tolist(), self.look_up(part, ordinal)[1].tolist(), strict=True)
