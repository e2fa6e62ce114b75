"""The files of a dataset at a URL, read through the node's cache."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brt_dist.data.file_cache import CacheSettings, FileCache, RemoteFile, file_system
from brt_dist.data.format import (
    DATASET_FILE,
    DOCUMENTS_FILE,
    HASHES_FILE,
    TOKENIZER_FILE,
    DatasetRecord,
    DocumentPlace,
    ShardRecord,
    dataset_digest,
    index_name,
    open_documents,
    open_hashes,
    parse_record,
)
from brt_dist.data.prefetch import Reader
from brt_dist.errors import DataError

_TRIES = 3


class RemoteFiles:
    """Has the methods of `LocalFiles` in `brt_dist.data.dataset`; every byte that it returns is verified.

    Raises the errors of `FileCache`.

    Args:
        url: of the dataset.
        settings: of the cache.
        report: called with a message about each problem that was recovered from.

    Raises:
        DataError: dataset.json is invalid or was altered.
    """

    def __init__(self, url: str, settings: CacheSettings, report: Callable[[str], None]) -> None:
        self.place = url.rstrip("/")
        self._cache = FileCache(settings, report)
        self._reader = Reader(self._cache)
        self._held: dict[str, int] = {}
        self.record = self._load()
        self._hashes = self._open_hashes(settings)

    def documents(self) -> npt.NDArray[np.int64]:
        """Loaded and verified in memory (16 bytes per document), because a memory map would see changes to the file."""
        url = self._url(DOCUMENTS_FILE)
        file = RemoteFile(url, self.record.documents_sha256)
        content = Path(self._hold(file)).read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(f"{url}: the cached copy changed while it was being read; start the run again")
        return open_documents(Path(url), self.record.documents, content)

    def tokenizer(self) -> Path:
        return Path(self._hold(RemoteFile(self._url(TOKENIZER_FILE), self.record.tokenizer.sha256)))

    def index(self, shard: ShardRecord) -> Path:
        return Path(self._hold(RemoteFile(self._url(index_name(shard.name)), shard.index_sha256)))

    def shard(self, shard: ShardRecord) -> Path:
        return Path(self._hold(self._file(shard)))

    def read(self, place: DocumentPlace, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """Bytes (size,) of a document from its byte `begin` on; a copy, so the file may be evicted afterwards."""
        file = self._file_of(place)
        first = begin if file.begin is not None else place.begin + begin
        data = np.empty(size, dtype=np.uint8)
        for _ in range(_TRIES):  # a truncated copy is detected and fetched again when it is reopened
            view, position = memoryview(data.data), first
            with self._cache.reading(file) as descriptor:
                while view and (got := os.preadv(descriptor, [view], position)):
                    view, position = view[got:], position + got
            if not view:
                return data
        raise DataError(f"{file.url}: its cached copy was truncated each time it was read")

    def expect(self, places: Sequence[DocumentPlace]) -> None:
        """Announce documents that will be read, in this order, to prefetch what holds them."""
        self._reader.expect(list(dict.fromkeys(self._file_of(place) for place in places)))

    def close(self) -> None:
        self._reader.close()
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        self._cache.close()

    def _load(self) -> DatasetRecord:
        url = self._url(DATASET_FILE)
        system, path = file_system(url)
        content = self._cache.persistently(url, lambda: bytes(system.cat_file(path)))
        try:
            record = parse_record(DatasetRecord, content)
        except ValueError:
            raise DataError(f"{url}: not a dataset of this format") from None
        if dataset_digest(record.tokenizer.sha256, record.shards) != record.digest:
            raise DataError(f"{url}: altered (its digest does not match its shards); rebuild the dataset")
        return record

    def _hold(self, file: RemoteFile) -> str:
        """A path to the file that stays valid until `close`, whatever happens to the cache."""
        if file.sha256 not in self._held:
            self._held[file.sha256] = self._cache.open(file)
        return f"/proc/self/fd/{self._held[file.sha256]}"

    def _url(self, name: str) -> str:
        return f"{self.place}/{name}"

    def _open_hashes(self, settings: CacheSettings) -> npt.NDArray[np.uint8] | None:
        """The hashes of the documents, if they are fetched one by one and not with their shards."""
        record = self.record
        fits = sum(shard.bytes for shard in record.shards) <= settings.budget
        if settings.fetch == "shards" or (settings.fetch == "auto" and (fits or record.hashes_sha256 is None)):
            return None
        if record.hashes_sha256 is None:
            raise DataError(
                f"{self.place}: has no {HASHES_FILE}, so its documents cannot be fetched one by one; nearest: "
                "data.cache.fetch=shards, or finish the dataset again with `brt data build`, which keeps its shards"
            )
        return open_hashes(Path(self._hold(RemoteFile(self._url(HASHES_FILE), record.hashes_sha256))), record.documents)

    def _file_of(self, place: DocumentPlace) -> RemoteFile:
        """What is fetched for a document: its own bytes, or its shard."""
        if self._hashes is None:
            return self._file(place.shard)
        sha256 = self._hashes[place.number].tobytes().hex()
        return RemoteFile(self._url(place.shard.name), sha256, place.bytes, place.begin)

    def _file(self, shard: ShardRecord) -> RemoteFile:
        return RemoteFile(self._url(shard.name), shard.sha256, shard.bytes)
