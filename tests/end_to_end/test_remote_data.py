"""Data on an object store: whatever the network, the disk and the processes do, never a wrong token.

Every test compares the hash of all inputs, targets, masks and starts with that of the same steps read from the
local folder, or finds a clear message instead.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brt_dist.data.dataset import Dataset
from brt_dist.data.format import ShardRecord
from brt_dist.data.reader import Prefetcher, SegmentReader, Segments
from brt_dist.errors import DataError, PlatformError
from tests.remote_data import STEPS, STREAMS, digest, folder, healed, read, schedule_of, settings, store, truth, url
from tests.s3 import Bucket

__all__ = ["folder", "healed", "store", "truth", "url"]  # fixtures
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("place", ["local", "s3"])
def test_any_number_of_ranks_reads_the_same(folder: Path, url: str, truth: str, place: str, tmp_path: Path) -> None:
    """dp 1, 2 and 4 at the same time, sharing a cache that holds about half of the dataset."""
    results: dict[tuple[int, int], list[Segments]] = {}

    def rank(size: int, number: int) -> None:
        each = STREAMS // size
        with Dataset.open(folder if place == "local" else url, settings(tmp_path, 2_400_000)) as dataset:
            results[size, number] = read(dataset, streams=range(number * each, (number + 1) * each))[0]

    sizes = (2, 4) if place == "local" else (1, 2, 4)
    threads = [threading.Thread(target=rank, args=(size, number)) for size in sizes for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size in sizes:
        assert digest(*(results[size, number] for number in range(size))) == truth
    if place == "s3":
        files = [path.stat() for path in (tmp_path / "cache").iterdir() if len(path.name) == 64]
        assert sum(status.st_size for status in files) <= 2_400_000


def test_four_ranks_fetch_each_shard_once(store: Bucket, url: str, folder: Path, truth: str, tmp_path: Path) -> None:
    before = store.proxy.bytes
    opened = [Dataset.open(url, settings(tmp_path)) for _ in range(4)]
    results: dict[int, list[Segments]] = {}

    def rank(number: int) -> None:
        results[number] = read(opened[number], streams=range(number * 2, number * 2 + 2))[0]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for dataset in opened:
        dataset.close()
    assert digest(*(results[number] for number in range(4))) == truth
    whole = sum(path.stat().st_size for path in folder.iterdir())
    assert store.proxy.bytes - before < 1.2 * whole  # four times as much if each fetched its own


def faults(store: Bucket, cache: Path) -> dict[str, Callable[[int], None]]:
    """What happens at which step."""
    proxy = store.proxy

    def away(step: int) -> None:
        if step == 5:
            proxy.set(away=True)
            threading.Timer(4.0, proxy.heal).start()

    def at(step: int, **changes: object) -> Callable[[int], None]:
        return lambda now: proxy.set(**changes) if now == step else None

    def removed(step: int) -> None:
        if step in (5, 20, 60):
            shutil.rmtree(cache, ignore_errors=True)

    def damaged(step: int) -> None:
        if step in (10, 50):
            for path in cache.iterdir():
                if len(path.name) == 64 and path.stat().st_size > 1000:
                    content = bytearray(path.read_bytes())
                    content[len(content) // 2] ^= 1
                    path.write_bytes(content)

    return {
        "slow": at(0, slow=0.02),
        "500s": at(3, errors=12),
        "cut in mid-shard": at(3, cuts=12, cut_after=30_000),
        "server away": away,
        "cache removed": removed,
        "damaged on disk": damaged,
    }


@pytest.mark.parametrize(
    "fault", ["slow", "500s", "cut in mid-shard", "server away", "cache removed", "damaged on disk"]
)
def test_faults_change_no_token(store: Bucket, url: str, truth: str, tmp_path: Path, fault: str) -> None:
    """With a small cache, so that shards are fetched again and again while it happens."""
    with Dataset.open(url, settings(tmp_path, 2_400_000)) as dataset:
        found, _ = read(dataset, before_step=faults(store, tmp_path / "cache")[fault])
    assert digest(found) == truth


def first_needed_after(dataset: Dataset, step: int) -> ShardRecord:
    """A shard that is not read in the first steps."""
    schedule = schedule_of(dataset)
    cursor, seen = schedule.start(), set[int]()
    ends = np.cumsum([shard.documents for shard in dataset.record.shards])
    for now in range(STEPS):
        plan, cursor = schedule.step(cursor)
        for document in plan.document.T.ravel().tolist():
            number = int(np.searchsorted(ends, document, side="right"))
            if number not in seen and now > step:
                return dataset.record.shards[number]
            seen.add(number)
    raise AssertionError("the first steps read every shard")


def test_an_altered_shard_is_refused_by_name(store: Bucket, url: str, folder: Path, tmp_path: Path) -> None:
    """The steps before are right; then the run stops."""
    with Dataset.open(folder) as local:
        right, _ = read(local)
        shard = first_needed_after(local, 20)
    content = bytearray((folder / shard.name).read_bytes())
    content[2000] ^= 1
    got: list[Segments] = []
    altered = store.instead(f"train/{shard.name}", bytes(content))
    with altered, Dataset.open(url, settings(tmp_path)) as dataset:
        schedule = schedule_of(dataset)
        reader = SegmentReader(dataset, schedule)
        prefetcher = Prefetcher(reader, schedule, schedule.start(), range(STREAMS), prefetch_steps=8)
        with pytest.raises(DataError, match=f"train/{shard.name}: altered: its sha256 is not {shard.sha256[:12]}"):
            while True:
                got.append(prefetcher.next()[1])
        prefetcher.close()
    assert 0 < len(got) < STEPS and digest(got) == digest(right[: len(got)])
    assert not (tmp_path / "cache" / shard.sha256).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: None, r"{name}: missing; dataset.json lists it"),
        (lambda name, content: content[:-512], r"{name}: altered: \d+ bytes, but dataset.json says \d+"),
    ],
)
def test_a_missing_or_short_shard_is_refused(
    store: Bucket, url: str, folder: Path, tmp_path: Path, change: Callable[[str, bytes], bytes | None], message: str
) -> None:
    with Dataset.open(folder) as local:
        name = first_needed_after(local, 20).name
    content = change(name, (folder / name).read_bytes())
    with (
        store.instead(f"train/{name}", content),
        Dataset.open(url, settings(tmp_path)) as dataset,
        pytest.raises(DataError, match=message.format(name=name)),
    ):
        read(dataset)


def test_a_server_that_stays_away_stops_the_run(store: Bucket, url: str, tmp_path: Path) -> None:
    with (
        Dataset.open(url, settings(tmp_path, 2_400_000, retry=1.0)) as dataset,
        pytest.raises(PlatformError, match=r"s3://data/train/shard-\d+\.tar: could not be fetched after retrying for"),
    ):
        read(dataset, before_step=lambda step: store.proxy.set(away=True) if step == 5 else None)


def test_a_shard_larger_than_the_cache(url: str, tmp_path: Path) -> None:
    with (
        Dataset.open(url, settings(tmp_path, 20_000)) as dataset,
        pytest.raises(DataError, match=r"exceed the size of the whole cache .*nearest: data.cache.budget_gb=0.1"),
    ):
        read(dataset)
