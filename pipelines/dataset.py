"""A dataset folder, opened for reading: shards are memory-mapped and sliced, nothing is read ahead or decoded."""

import json
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.errors import DataError
from pipelines.format import (
    DOCUMENTS_FILE,
    TOKENIZER_FILE,
    DatasetRecord,
    index_name,
    load_dataset,
    load_index,
    storage_type,
)

_MAPPED_SHARDS = 256  # each holds one file descriptor; systems allow 1024 or more


class Dataset:
    """Documents 0..K-1 of a dataset folder.  Make it with `Dataset.open`; it may be shared by threads.

    lengths: (K,) int64 tokens of each document.  digest: of the whole dataset.  vocab_size: ids are in
    [0, vocab_size).  tokenizer: path of its file.  record: dataset.json.
    """

    def __init__(self, folder: Path, record: DatasetRecord, documents: npt.NDArray[np.int64]) -> None:
        self.folder = folder
        self.record = record
        self.digest = record.digest
        self.vocab_size = record.tokenizer.vocab_size
        self.tokenizer = folder / TOKENIZER_FILE
        self.tokenizer_sha256 = record.tokenizer.sha256
        self.lengths = documents[1]
        self._offsets = documents[0]
        self._ends = np.cumsum([shard.documents for shard in record.shards])  # documents before the end of each shard
        self._type = storage_type(record.dtype)
        self._map = lru_cache(maxsize=_MAPPED_SHARDS)(self._map_shard)

    @staticmethod
    def open(folder: Path | str) -> "Dataset":
        """Open a finished dataset.  Every file must exist and have the size that dataset.json says.

        The content is checked by `verify`, not here: opening does not read the shards.
        DataError: no dataset, or a file of it that is missing or of another size, by name.
        """
        folder = Path(folder)
        record = load_dataset(folder)
        for shard in record.shards:
            _check_size(folder / shard.name, shard.bytes)
        if not (folder / TOKENIZER_FILE).is_file():
            raise DataError(f"{folder / TOKENIZER_FILE}: missing")
        documents = open_documents(folder / DOCUMENTS_FILE, record.documents)
        return Dataset(folder, record, documents)

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        """Token ids (count,) of a document from `offset` on: a read-only view of the shard's map, uint16 or uint32.

        IndexError: not all in the document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        if offset < 0 or count < 0 or offset + count > self.lengths[document]:
            raise IndexError(
                f"tokens {offset}..{offset + count} of document {document} ({self.lengths[document]} tokens)"
            )
        shard = self._shard_of(document)
        begin = int(self._offsets[document]) + offset * self._type.itemsize
        return self._map(shard)[begin : begin + count * self._type.itemsize].view(self._type)

    def source(self, document: int) -> dict[str, str]:
        """Where a document came from: its place in the corpus, its shard and its key there.

        Reads the KEY.json that stands before the tokens in the shard.  IndexError: no such document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        shard = self._shard_of(document)
        name = self.record.shards[shard].name
        first = int(self._ends[shard]) - self.record.shards[shard].documents
        entry = load_index(self.folder / index_name(name)).entries[document - first]
        with tarfile.open(self.folder / name) as tar:
            file = tar.extractfile(f"{entry.key}.json")
            place = json.load(file)["source"] if file else ""
        return {"source": str(place), "shard": name, "key": entry.key}

    def close(self) -> None:
        """Let go of the maps.  Arrays that `tokens` returned stay valid."""
        self._map.cache_clear()

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shard_of(self, document: int) -> int:
        return int(np.searchsorted(self._ends, document, side="right"))

    def _map_shard(self, shard: int) -> npt.NDArray[np.uint8]:
        path = self.folder / self.record.shards[shard].name
        try:
            return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def open_documents(path: Path, documents: int) -> npt.NDArray[np.int64]:
    """Map documents.npy: (2, K) int64.  DataError: missing or of another shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if array.shape != (2, documents) or array.dtype != np.dtype("<i8"):
        raise DataError(f"{path}: {array.dtype} {array.shape}, dataset.json says int64 (2, {documents})")
    return array


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing; build the dataset again, the shards that are there will be kept") from None
    if actual != size:
        raise DataError(f"{path}: {actual} bytes, dataset.json says {size}; remove it and build the dataset again")
