"""A dataset in memory, for a corpus so small that building shards would take longer than reading it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.tokenizers import Tokenizer
from brt_dist.errors import DataError


class InMemoryDataset:
    """Documents 0..K-1, read like those of a `Dataset`.

    Attributes:
        lengths: (K,) int64, tokens of each document.
        documents: how many there are [K].
        vocab_size: ids are in [0, vocab_size).
    """

    def __init__(self, documents: Iterable[npt.NDArray[Any]], vocab_size: int) -> None:
        """Args:
            documents: token ids of each document; empty ones are left out.
            vocab_size: of the tokenizer.

        Raises:
            DataError: there is no token in them.
        """
        self._documents = [document for document in documents if len(document)]
        if not self._documents:
            raise DataError("a dataset in memory needs at least one document with a token in it")
        self.lengths = np.array([len(document) for document in self._documents], dtype=np.int64)
        self.documents = len(self._documents)
        self.vocab_size = vocab_size

    @classmethod
    def of_texts(cls, texts: Iterable[str], tokenizer: Tokenizer) -> "InMemoryDataset":
        """Tokenize texts, one document each."""
        return cls([tokenizer.encode(text) for text in texts], tokenizer.vocab_size)

    def length(self, document: int) -> int:
        """Tokens of a document."""
        return len(self._documents[document])

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        """Token ids (count,) of a document from `offset` on."""
        return self._documents[document][offset : offset + count]

    def expect(self, documents: Sequence[int]) -> None:
        """Do nothing: all documents are here already."""

    def save(self, path: Path) -> None:
        """Write it to a file, for :meth:`load` in another process."""
        np.savez(path, tokens=np.concatenate(self._documents), lengths=self.lengths, vocab_size=self.vocab_size)

    @classmethod
    def load(cls, path: Path) -> "InMemoryDataset":
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            ends = held["lengths"].cumsum()[:-1]
            return cls(np.split(held["tokens"], ends), int(held["vocab_size"]))
