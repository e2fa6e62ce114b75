"""Which documents of a corpus a dataset takes: those of one side of a split, and of equal ones only the first.

Both go by the sha256 of the text alone.  So a document is on the same side wherever it stands and whatever else is in
the corpus, and equal documents are always on the same side.
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

_HASH_BYTES = 16  # of the digest: two different texts that share them are not to be expected in any corpus
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
    """Leave the hashes of the documents of a shard in the folder, in order; their number.  DataError as for reading."""
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
    """Positions of the documents that came before, by shard.

    Memory: for each document of the corpus its hash (16 bytes), and as much again while they are compared.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        parts = [np.load(folder / _NAME.format(number)) for number in range(shards)]
        hashes = np.concatenate(parts) if parts else np.empty(0, dtype=f"V{_HASH_BYTES}")
        self._bounds = np.cumsum([0, *(part.size for part in parts)])
        self._is_first: npt.NDArray[Any] = np.zeros(hashes.size, dtype=bool)
        # of equal ones, np.unique gives the place of the first
        self._is_first[np.unique(hashes, return_index=True)[1]] = True

    def of(self, shard: int) -> tuple[int, ...]:
        here = self._is_first[self._bounds[shard] : self._bounds[shard + 1]]
        return tuple(np.flatnonzero(~here).tolist())


def selected(documents: Iterator[Any], duplicates: Sequence[int], split: Split | None) -> Iterator[tuple[Any, bool]]:
    """Of what a shard's units hold, what is on this side; each with whether it is a duplicate."""
    again, position = frozenset(duplicates), 0
    for item in documents:
        if not isinstance(item, Document):
            yield item, False
            continue
        position += 1
        if split is None or split.takes(item.text):
            yield item, position - 1 in again
