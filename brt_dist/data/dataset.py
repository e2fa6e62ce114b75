"""A dataset that is open for reading.  Tokens are slices of its shards; nothing is decoded."""

import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.document_check import DocumentCheck
from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.format import (
    DOCUMENTS_FILE,
    HASHES_FILE,
    TOKENIZER_FILE,
    DocumentPlace,
    ShardRecord,
    index_name,
    load_dataset,
    load_index,
    open_documents,
    open_hashes,
    storage_type,
)
from brt_dist.data.remote import RemoteFiles
from brt_dist.errors import DataError
from brt_dist.files import is_url
from brt_dist.reading import parse_json

_LARGEST_DESCRIPTION = 1 << 20  # bytes of a document's KEY.json
_MAPPED_SHARDS = 256  # each holds one file descriptor; systems allow 1024 or more


class Dataset:
    """Documents 0..K-1 of a dataset.  `Dataset.open` opens one; threads may share it.

    Attributes:
        place: the folder or URL.
        record: dataset.json.
        digest: of the whole dataset.
        documents: number of documents [K].
        lengths: (K,) int64, tokens of each document.
        vocab_size: ids are in [0, vocab_size).
        tokenizer: path of its file.
        tokenizer_sha256: of that file.
        is_remote: whether it is read from a URL.
        parts: `lengths` of each dataset; a dataset is a mixture of one.
        shards: (S,) documents of the shards of each dataset.
        weights: of each dataset.
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
        self.parts, self.weights = [self.lengths], (1.0,)  # a mixture of one
        self._offsets = documents[0]
        self.shards = [np.array([shard.documents for shard in record.shards], dtype=np.int64)]
        self._ends = np.cumsum(self.shards[0])  # documents before the end of each shard
        self._type = storage_type(record.dtype)

    @staticmethod
    def open(
        place: Path | str,
        cache: CacheSettings | None = None,
        report: Callable[[str], None] = lambda _: None,
        check: bool = True,
        verify: bool = True,
    ) -> "Dataset":
        """Open a finished dataset.

        In a folder, every file must exist with the size in dataset.json; opening does not read their content, which
        `brt data verify` checks whole.  Files from a URL are verified when they arrive.

        Args:
            place: a folder, or a URL that fsspec supports (`s3://...`).
            cache: local cache, required for a URL.
            report: called with a message about each problem of the network or the cache that was recovered from.
            check: check every file of a folder; false if another process of the node does.
            verify: compare each document of a folder with its digest when it is first read.

        Raises:
            DataError: not a dataset, or a file is missing or has the wrong size.
        """
        if not is_url(place):
            return Dataset(LocalFiles(Path(str(place).removeprefix("file://")), check, verify))
        if cache is None:
            raise DataError(f"{place}: reading a dataset from a URL needs a local cache (data.cache)")
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

        Raises:
            IndexError: the range is not within the document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        if offset < 0 or count < 0 or offset + count > self.lengths[document]:
            raise IndexError(
                f"tokens {offset}..{offset + count} of document {document} ({self.lengths[document]} tokens)"
            )
        width = self._type.itemsize
        return self._files.read(self._place_of(document), offset * width, count * width).view(self._type)

    def expect(self, documents: Sequence[int]) -> None:
        """Announce documents that will be read, in this order; a remote dataset prefetches them or their shards."""
        if not isinstance(self._files, LocalFiles):
            self._files.expect([self._place_of(document) for document in documents])

    def source(self, document: int) -> dict[str, str]:
        """Where a document came from: its place in the corpus, and its shard and key.

        Reads the KEY.json before the tokens in the shard.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= document < self.lengths.size:
            raise IndexError(f"document {document} of {self.lengths.size}")
        number = self._shard_of(document)
        shard = self.record.shards[number]
        first = int(self._ends[number]) - shard.documents
        entries = load_index(self._files.index(shard)).entries
        if document - first >= len(entries):
            raise DataError(
                f"{self.place}: the index of {shard.name} has {len(entries)} documents, not {shard.documents}"
            )
        key = entries[document - first].key
        source = _source_of(self._files.shard(shard), key) if shard.name.endswith(".tar") else shard.source
        return {"source": source, "shard": shard.name, "key": key}

    def close(self) -> None:
        """Close the files.  Arrays that `tokens` returned stay valid."""
        self._files.close()

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place_of(self, document: int) -> DocumentPlace:
        shard, begin = self.record.shards[self._shard_of(document)], int(self._offsets[document])
        size = int(self.lengths[document]) * self._type.itemsize
        if begin < 0 or size <= 0 or begin + size > shard.bytes:
            raise DataError(
                f"{self.place}/{DOCUMENTS_FILE}: document {document} is not in {shard.name}, where it says it is; the "
                "file is damaged: rebuild the dataset, which keeps the existing shards"
            )
        return DocumentPlace(document, shard, begin, size)

    def _shard_of(self, document: int) -> int:
        return int(np.searchsorted(self._ends, document, side="right"))


class LocalFiles:
    """The files of a dataset folder: memory-mapped.

    Args:
        folder: of the dataset.
        check: whether every shard exists with the right size.
        verify: compare each document with its digest when it is first read.
    """

    def __init__(self, folder: Path, check: bool = True, verify: bool = True) -> None:
        self.place: Path | str = folder
        self._folder = folder
        self.record = load_dataset(folder)
        self._map = lru_cache(maxsize=_MAPPED_SHARDS)(self._map_shard)
        for shard in self.record.shards if check else ():
            _check_size(folder / shard.name, shard.bytes)
        if not self.tokenizer().is_file():
            raise DataError(f"{self.tokenizer()}: missing")
        record = self.record
        hashed = verify and record.hashes_sha256 is not None
        hashes = open_hashes(folder / HASHES_FILE, record.documents) if hashed else None
        self._check = DocumentCheck(hashes, storage_type(record.dtype), record.tokenizer.vocab_size)

    def documents(self) -> npt.NDArray[np.int64]:
        return open_documents(self._folder / DOCUMENTS_FILE, self.record.documents)

    def tokenizer(self) -> Path:
        return self._folder / TOKENIZER_FILE

    def index(self, shard: ShardRecord) -> Path:
        return self._folder / index_name(shard.name)

    def shard(self, shard: ShardRecord) -> Path:
        return self._folder / shard.name

    def read(self, place: DocumentPlace, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """Bytes (size,) of a document from its byte `begin` on: a view of the map of its shard."""
        shard = self._map(place.shard.name)
        self._check.look(place, shard[place.begin : place.begin + place.bytes], f"{self._folder / place.shard.name}")
        first = place.begin + begin
        return shard[first : first + size]

    def close(self) -> None:
        self._map.cache_clear()

    def _map_shard(self, name: str) -> npt.NDArray[np.uint8]:
        path = self._folder / name
        try:
            return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def _source_of(shard: Path, key: str) -> str:
    """Where the document `key` of a shard came from; its key if the tar does not say (other programs' tars may not)."""
    name = f"{key}.json"
    try:
        with tarfile.open(shard) as tar:
            file = tar.extractfile(name) if name in tar.getnames() else None
            described = parse_json(file.read(_LARGEST_DESCRIPTION)) if file else {}
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{shard}: {name} cannot be read: {error}") from None
    return str(described.get("source", key)) if isinstance(described, dict) else key


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing; rebuild the dataset, which keeps the existing shards") from None
    if actual != size:
        raise DataError(f"{path}: {actual} bytes, but dataset.json says {size}; remove it and rebuild the dataset")
