"""A dataset, opened for reading: its shards are sliced, nothing is decoded."""

import json
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.format import (
    DOCUMENTS_FILE,
    TOKENIZER_FILE,
    ShardRecord,
    index_name,
    load_dataset,
    load_index,
    open_documents,
    storage_type,
)
from brt_dist.data.remote import RemoteFiles
from brt_dist.errors import DataError
from brt_dist.files import is_url

_MAPPED_SHARDS = 256  # each holds one file descriptor; systems allow 1024 or more


class Dataset:
    """Documents 0..K-1 of a dataset.  Make it with `Dataset.open`; it may be shared by threads.

    lengths: (K,) int64 tokens of each document.  digest: of the whole dataset.  vocab_size: ids are in
    [0, vocab_size).  tokenizer: path of its file.  record: dataset.json.  place: the folder or URL.
    """

    def __init__(self, files: "LocalFiles | RemoteFiles") -> None:
        record = files.record
        self._files = files
        self.place = files.place
        self.record = record
        self.digest = record.digest
        self.vocab_size = record.tokenizer.vocab_size
        self.tokenizer = files.tokenizer()
        self.tokenizer_sha256 = record.tokenizer.sha256
        self.documents = record.documents
        self.is_remote = not isinstance(files, LocalFiles)
        documents = files.documents()
        self.lengths = documents[1]
        self.parts, self.weights = [self.lengths], (1.0,)  # it is a mixture of one
        self._offsets = documents[0]
        self._ends = np.cumsum([shard.documents for shard in record.shards])  # documents before the end of each shard
        self._type = storage_type(record.dtype)

    @staticmethod
    def open(
        place: Path | str, cache: CacheSettings | None = None, report: Callable[[str], None] = lambda _: None
    ) -> "Dataset":
        """Open a finished dataset: a folder, or a URL that fsspec knows (`s3://...`), which needs a `cache`.

        In a folder every file must exist and have the size that dataset.json says.  The content is checked by
        `verify`, not here: opening does not read the shards.  Files of a URL are checked when they arrive.
        report: told what went wrong with the network or the cache and was made good.
        DataError: no dataset, or a file of it that is missing or of another size, by name.
        """
        if not is_url(place):
            return Dataset(LocalFiles(Path(str(place).removeprefix("file://"))))
        if cache is None:
            raise DataError(f"{place}: a dataset at a URL is read through a cache on this machine (data.cache)")
        files = RemoteFiles(str(place), cache, report)
        try:
            return Dataset(files)
        except BaseException:
            files.close()
            raise

    def length(self, document: int) -> int:
        """Tokens of a document."""
        return int(self.lengths[document])

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        """Token ids (count,) of a document from `offset` on: read-only, uint16 or uint32.

        IndexError: not all in the document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        if offset < 0 or count < 0 or offset + count > self.lengths[document]:
            raise IndexError(
                f"tokens {offset}..{offset + count} of document {document} ({self.lengths[document]} tokens)"
            )
        begin = int(self._offsets[document]) + offset * self._type.itemsize
        size = count * self._type.itemsize
        return self._files.read(self.record.shards[self._shard_of(document)], begin, size).view(self._type)

    def expect(self, documents: Sequence[int]) -> None:
        """These will be read, in this order: a remote dataset fetches their shards ahead."""
        if isinstance(self._files, LocalFiles):
            return
        shards = self._ends.searchsorted(np.asarray(documents, dtype=np.int64), side="right").tolist()
        self._files.expect([self.record.shards[number] for number in dict.fromkeys(shards)])

    def source(self, document: int) -> dict[str, str]:
        """Where a document came from: its place in the corpus, its shard and its key there.

        Reads the KEY.json that stands before the tokens in the shard.  IndexError: no such document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        number = self._shard_of(document)
        shard = self.record.shards[number]
        first = int(self._ends[number]) - shard.documents
        entry = load_index(self._files.index(shard)).entries[document - first]
        with tarfile.open(self._files.shard(shard)) as tar:
            name = f"{entry.key}.json"
            file = tar.extractfile(name) if name in tar.getnames() else None  # tars of others may have none
            described = json.load(file) if file else {}
            place = described.get("source", entry.key) if isinstance(described, dict) else entry.key
        return {"source": str(place), "shard": shard.name, "key": entry.key}

    def close(self) -> None:
        """Let go of the files.  Arrays that `tokens` returned stay valid."""
        self._files.close()

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shard_of(self, document: int) -> int:
        return int(np.searchsorted(self._ends, document, side="right"))


class LocalFiles:
    """The files of a dataset folder: memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.place: Path | str = folder
        self._folder = folder
        self.record = load_dataset(folder)
        self._map = lru_cache(maxsize=_MAPPED_SHARDS)(self._map_shard)
        for shard in self.record.shards:
            _check_size(folder / shard.name, shard.bytes)
        if not self.tokenizer().is_file():
            raise DataError(f"{self.tokenizer()}: missing")

    def documents(self) -> npt.NDArray[np.int64]:
        return open_documents(self._folder / DOCUMENTS_FILE, self.record.documents)

    def tokenizer(self) -> Path:
        return self._folder / TOKENIZER_FILE

    def index(self, shard: ShardRecord) -> Path:
        return self._folder / index_name(shard.name)

    def shard(self, shard: ShardRecord) -> Path:
        return self._folder / shard.name

    def read(self, shard: ShardRecord, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """Bytes (size,) of a shard: a view of its map."""
        return self._map(shard.name)[begin : begin + size]

    def close(self) -> None:
        self._map.cache_clear()

    def _map_shard(self, name: str) -> npt.NDArray[np.uint8]:
        path = self._folder / name
        try:
            return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing; build the dataset again, the shards that are there will be kept") from None
    if actual != size:
        raise DataError(f"{path}: {actual} bytes, dataset.json says {size}; remove it and build the dataset again")
