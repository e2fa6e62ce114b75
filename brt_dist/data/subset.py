"""The first documents of a dataset."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from brt_dist.data.reader import Documents


class FirstDocuments:
    """Documents 0..count-1 of `data`, or all if it has fewer.

    Attributes:
        lengths: (count,) int64, tokens of each.
    """

    def __init__(self, data: Documents, count: int) -> None:
        self._data = data
        self.lengths = data.lengths[:count]

    def length(self, document: int) -> int:
        """Tokens of a document."""
        return self._data.length(document)

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        """Token ids (count,) of a document from `offset` on."""
        return self._data.tokens(document, offset, count)

    def expect(self, documents: Sequence[int]) -> None:
        """Announce documents that will be read, in this order."""
        self._data.expect(documents)
