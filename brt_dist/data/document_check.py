"""Compares documents with their digests when they are first read, so that a damaged shard is not trained on."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.format import DocumentPlace
from brt_dist.errors import DataError

_REMEMBERED = 1 << 16  # documents known to be good; a rank has far fewer streams


class DocumentCheck:
    """Checks each document once while streams read it.

    Args:
        hashes: (K, 32) uint8, sha256 of each document's tokens; None: only check that ids are in the vocabulary.
        dtype: of the ids on disk.
        vocab_size: ids are in [0, vocab_size).
    """

    def __init__(self, hashes: npt.NDArray[np.uint8] | None, dtype: "np.dtype[Any]", vocab_size: int) -> None:
        self._hashes, self._type, self._vocab_size = hashes, dtype, vocab_size
        self._good: dict[int, None] = {}

    def look(self, place: DocumentPlace, content: npt.NDArray[np.uint8], where: str) -> None:
        """Check a document unless it was checked recently.

        Args:
            place: of the document.
            content: (bytes,) of its tokens.
            where: its shard, for the message.

        Raises:
            DataError: it is not what was built.
        """
        if place.number in self._good:
            return
        if problem := self._problem(place, content):
            raise DataError(
                f"{where}: document {place.number} (bytes {place.begin} to {place.begin + place.bytes}) is damaged: "
                f"{problem}; `brt data verify` lists all damage; remove the shard and rebuild the dataset"
            )
        self._good[place.number] = None
        if len(self._good) > _REMEMBERED:
            self._good.pop(next(iter(self._good)), None)

    def _problem(self, place: DocumentPlace, content: npt.NDArray[np.uint8]) -> str | None:
        if content.size != place.bytes:
            return "the shard ends before it"
        if self._hashes is not None:
            good = hashlib.sha256(content.data).digest() == self._hashes[place.number].tobytes()
            return None if good else "its sha256 differs"
        largest = int(content.view(self._type).max(initial=0))
        return None if largest < self._vocab_size else f"id {largest} is outside the vocabulary of {self._vocab_size}"
