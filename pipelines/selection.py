"""Which documents of a corpus go into a dataset: one side of a split, and only the first of equal documents.

Both depend only on the sha256 of the text.  So a document is on the same side wherever it is and whatever else the
corpus has, and equal documents are always on the same side.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from brt_dist.files import atomic_file
from pipelines.shard_contents import ShardContents
from pipelines.sources import Document, read_units

_HASH_BYTES = 16  # bytes of the digest: no corpus is large enough for two different texts to share them
_NAME = "hashes-{:06d}.npy"

Side = Literal["train", "validation"]


@dataclass(frozen=True)
class Split:
    """share: of the documents that are held out, in (0, 1).  side: which ones are taken."""

    share: float
    side: Side

    @property
    def taken(self) -> float:
        """The share that this side takes."""
        return self.share if self.side == "validation" else 1 - self.share

    def takes(self, text: str) -> bool:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return (number < self.share * 2**64) == (self.side == "validation")


def hash_shard(folder: Path, contents: ShardContents, text_field: str) -> int:
    """Write the hashes of a shard's documents to the folder, in order; returns how many.  DataError as for reading."""
    found = [
        hashlib.sha256(item.text.encode()).digest()[:_HASH_BYTES]
        for item in read_units(contents.units, text_field)
        if isinstance(item, Document)
    ]
    with atomic_file(folder / _NAME.format(contents.number)) as file:
        np.save(file, np.frombuffer(b"".join(found), dtype=f"V{_HASH_BYTES}"))
    return len(found)


def has_hashes(folder: Path, number: int) -> bool:
    return (folder / _NAME.format(number)).is_file()


def remove_hashes(folder: Path) -> None:
    for file in folder.glob("hashes-*.npy"):
        file.unlink()


class Duplicates:
    """Positions of documents that repeat an earlier one, by shard.

    Memory: for each document of the corpus its hash (16 bytes), and as much again while they are compared.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        parts = [np.load(folder / _NAME.format(number)) for number in range(shards)]
        hashes = np.concatenate(parts) if parts else np.empty(0, dtype=f"V{_HASH_BYTES}")
        self._bounds = np.cumsum([0, *(part.size for part in parts)])
        self._is_first: npt.NDArray[Any] = np.zeros(hashes.size, dtype=bool)
        # np.unique returns the place of the first of equal values
        self._is_first[np.unique(hashes, return_index=True)[1]] = True

    def of(self, shard: int) -> tuple[int, ...]:
        here = self._is_first[self._bounds[shard] : self._bounds[shard + 1]]
        return tuple(np.flatnonzero(~here).tolist())


def selected(documents: Iterator[Any], duplicates: Sequence[int], split: Split | None) -> Iterator[tuple[Any, bool]]:
    """The part of a shard's units that is on this side; each with whether it is a duplicate."""
    again, position = frozenset(duplicates), 0
    for item in documents:
        if not isinstance(item, Document):
            yield item, False
            continue
        position += 1
        if split is None or split.takes(item.text):
            yield item, position - 1 in again
