"""Remote datasets: what is fetched, in bytes, and that it is what the local folder holds.  The store is in memory."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from brt_dist.config.loading import load
from brt_dist.data import dataset as dataset_module
from brt_dist.data import file_cache, remote
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings, RemoteFile
from brt_dist.data.format import DATASET_FILE, HASHES_FILE
from brt_dist.data.open import open_training, training_schedule
from brt_dist.data.prefetch import NodeCache, Reader
from brt_dist.data.reader import SegmentReader
from brt_dist.errors import DataError
from pipelines.finish import finish_dataset
from pipelines.verify import verify
from tests.datasets import make_dataset

URL = "memory://store/train"


class Store:
    """The files of a dataset in fsspec's memory file system; counts the bytes that are read of shards."""

    def __init__(self, folder: Path) -> None:
        self.files = fsspec.filesystem("memory")
        self.shard_bytes = 0
        for path in folder.iterdir():
            self.files.pipe_file(f"/store/train/{path.name}", path.read_bytes())

    def info(self, path: str) -> Any:
        return self.files.info(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        found = bytes(self.files.cat_file(path, start=start, end=end))
        self.shard_bytes += len(found) if path.endswith(".tar") else 0
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents in 12 shards or so."""
    draw = random.Random(5)
    texts = ["".join(draw.choices("abcdefgh", k=draw.randint(200, 3000))) for _ in range(120)]
    return make_dataset(tmp_path_factory.mktemp("local"), texts, shard_size=16_000).folder


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    found = Store(folder)
    for module in (file_cache, remote):
        monkeypatch.setattr(module, "file_system", lambda url: (found, url.removeprefix("memory:/")))
    yield found
    found.files.rm("/store", recursive=True)


def settings(tmp_path: Path, fetch: Any, budget: int = 10**8) -> CacheSettings:
    return CacheSettings(tmp_path / "cache", budget, retry_seconds=1.0, fetch=fetch)


def test_only_the_documents_that_are_read_are_fetched(store: Store, folder: Path, tmp_path: Path) -> None:
    read = [3, 77, 110, 3]
    with Dataset.open(folder) as local, Dataset.open(URL, settings(tmp_path, "documents")) as far:
        for document in read:
            count = local.length(document) - 7
            assert np.array_equal(far.tokens(document, 7, count), local.tokens(document, 7, count))
        itemsize = local.tokens(0, 0, 1).itemsize
        assert store.shard_bytes == sum(local.length(document) * itemsize for document in (3, 77, 110))


def test_whole_shards_are_fetched_once_if_they_fit(store: Store, folder: Path, tmp_path: Path) -> None:
    with Dataset.open(URL, settings(tmp_path, "auto")) as far:
        for document in range(0, far.documents, 3):
            far.tokens(document, 0, 1)
        assert store.shard_bytes == sum(shard.bytes for shard in far.record.shards)


def test_auto_fetches_documents_of_what_does_not_fit(store: Store, tmp_path: Path) -> None:
    with Dataset.open(URL, settings(tmp_path, "auto", budget=100_000)) as far:
        far.tokens(5, 0, 1)
        assert store.shard_bytes == far.length(5) * far.tokens(5, 0, 1).itemsize


def test_an_altered_document_is_not_used(store: Store, folder: Path, tmp_path: Path) -> None:
    with Dataset.open(URL, settings(tmp_path, "documents")) as far:
        place = far._place_of(9)
        path = f"/store/train/{place.shard.name}"
        content = bytearray(store.files.cat_file(path))
        content[place.begin] ^= 1
        store.files.pipe_file(path, bytes(content))
        with pytest.raises(DataError, match="altered"):
            far.tokens(9, 0, 1)
        far.tokens(8, 0, 1)  # what is beside it can still be read


def test_datasets_without_hashes_are_read_as_before(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((folder / DATASET_FILE).read_text())
    del record["hashes_sha256"]
    store.files.pipe_file(f"/store/train/{DATASET_FILE}", json.dumps(record).encode())
    store.files.rm(f"/store/train/{HASHES_FILE}")
    with Dataset.open(folder) as local, Dataset.open(URL, settings(tmp_path, "auto", budget=100_000)) as far:
        assert np.array_equal(far.tokens(50, 0, 9), local.tokens(50, 0, 9))
    with pytest.raises(DataError, match=r"cannot be fetched one by one; nearest: data\.cache\.fetch=shards"):
        Dataset.open(URL, settings(tmp_path, "documents"))


def test_hashes_are_checked_by_verify(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, ["one text", "another one"]).folder
    assert verify(folder)[1] == []
    content = bytearray((folder / HASHES_FILE).read_bytes())
    content[-1] ^= 1
    (folder / HASHES_FILE).write_bytes(bytes(content))
    assert verify(folder)[1] == [f"{HASHES_FILE}: altered (sha256 differs)"]


def test_ranges_are_fetched_by_the_cache_process_too(store: Store, tmp_path: Path) -> None:
    """What a reader announces reaches it through a file, with the place of the range."""
    cache = settings(tmp_path, "documents")
    server = NodeCache(cache.directory, cache.budget, 1.0, {})
    reader = Reader(file_cache.FileCache(cache))
    try:
        with Dataset.open(URL, cache) as far:
            wanted = [far._files._file_of(far._place_of(number)) for number in (1, 40)]  # type: ignore[union-attr]
            reader.expect(wanted)
            assert server._wants() == wanted and isinstance(wanted[0], RemoteFile) and wanted[1].begin
    finally:
        reader.close()
        server.close()


def test_shards_are_fetched_about_once_in_an_order_that_keeps_to_them(store: Store, tmp_path: Path) -> None:
    """With a cache for a part of the dataset, the order of all documents fetches it again and again."""
    fetched = {}
    for together in (0, 2):
        text = {
            "model": {"window": 64},
            "data": {"dataset": URL, "segment": 128, "streams": 4, "shuffle_shards": together},
            "run": {"directory": str(tmp_path), "steps": 5},
        }
        cache = {"directory": str(tmp_path / f"cache{together}"), "budget_gb": 3e-4, "fetch": "shards"}
        config = load(json.dumps(text), [f"data.cache={json.dumps(cache)}"]).config
        before = store.shard_bytes
        with open_training(config.data) as data:
            schedule = training_schedule(config, data)
            reader, cursor = SegmentReader(data, schedule), schedule.start()
            while cursor.next[0] < data.documents:
                plan, cursor = schedule.step(cursor)
                reader.read(plan, range(4))
            fetched[together] = (store.shard_bytes - before) / sum(shard.bytes for shard in data.record.shards)
    assert fetched[2] <= 1.5, fetched
    assert fetched[0] > 4, fetched


def test_one_process_of_a_node_looks_at_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    check = dataset_module._check_size
    monkeypatch.setattr(dataset_module, "_check_size", lambda path, size: (looked.append(path), check(path, size)))
    for local_rank in range(8):
        config = load(json.dumps({"data": {"dataset": str(folder)}, "run": {"directory": "r", "steps": 1}}), []).config
        with open_training(config.data, check=local_rank == 0) as data:
            shards = len(data.record.shards)  # type: ignore[union-attr]
    assert len(looked) == shards > 5


def test_finishing_an_older_dataset_again_adds_hashes(folder: Path, tmp_path: Path) -> None:
    """Its shards stay, and so does its digest."""
    from brt_dist.data.format import load_dataset
    from brt_dist.data.tokenizers import load_tokenizer

    again = tmp_path / "again"
    again.mkdir()
    for path in folder.iterdir():
        if path.name not in (HASHES_FILE, DATASET_FILE):
            (again / path.name).write_bytes(path.read_bytes())
    record = load_dataset(folder)
    names = [source.name for source in record.sources]
    made = finish_dataset(again, names, load_tokenizer(again / "tokenizer.json"), record.shards, record.dtype)
    assert made == record and (again / HASHES_FILE).read_bytes() == (folder / HASHES_FILE).read_bytes()
