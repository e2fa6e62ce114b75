"""A dataset on an object store, and what ranks read of it: fixtures and helpers of the tests of remote data."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.reader import Prefetcher, SegmentReader, Segments
from brt_dist.data.stream_schedule import StreamSchedule
from tests.datasets import make_dataset
from tests.s3 import Bucket, bucket

STREAMS, SEGMENT, WINDOW, STEPS = 8, 64, 16, 200
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local dataset of 20 shards of 100 to 200 kB, together 3 MB."""
    rng = random.Random(5)
    texts = ["".join(rng.choices("abcdefgh", k=rng.randint(200, 16000))) for _ in range(240)]
    return make_dataset(tmp_path_factory.mktemp("local"), texts, shard_size=100_000).folder


@pytest.fixture(scope="module")
def store() -> Iterator[Bucket]:
    with bucket() as found:
        yield found


@pytest.fixture(scope="module")
def url(store: Bucket, folder: Path) -> str:
    return store.upload(folder, "train")


@pytest.fixture(autouse=True)
def healed(store: Bucket) -> Iterator[None]:
    yield
    store.proxy.heal()


def settings(tmp_path: Path, budget: int = 10**8, retry: float = 60.0) -> CacheSettings:
    return CacheSettings(tmp_path / "cache", budget, retry)


def schedule_of(dataset: Dataset) -> StreamSchedule:
    return StreamSchedule(dataset.parts, streams=STREAMS, segment=SEGMENT, window=WINDOW, seed=3)


def read(
    dataset: Dataset,
    steps: int = STEPS,
    streams: range = range(STREAMS),
    cursor: Cursor | None = None,
    before_step: Callable[[int], None] = lambda _: None,
    ahead: int = 8,
) -> tuple[list[Segments], Cursor]:
    """What a rank with `streams` reads, as it reads in training."""
    schedule = schedule_of(dataset)
    cursor = cursor or schedule.start()
    prefetcher = Prefetcher(SegmentReader(dataset, schedule), schedule, cursor, streams, prefetch_steps=ahead)
    found = []
    try:
        for step in range(steps):
            before_step(step)
            _, segments, cursor, _ = prefetcher.next()
            found.append(segments)
    finally:
        prefetcher.close()
    return found, cursor


def digest(*ranks: list[Segments]) -> str:
    """Of everything that the ranks read, in the order of steps and streams."""
    sha256 = hashlib.sha256()
    for step in zip(*ranks, strict=True):
        for name in ("input", "target", "mask", "starts"):
            sha256.update(np.concatenate([getattr(segments, name) for segments in step]).tobytes())
    return sha256.hexdigest()


@pytest.fixture(scope="module")
def truth(folder: Path) -> str:
    with Dataset.open(folder) as dataset:
        return digest(read(dataset)[0])


READER = """
import json, resource, sys, time
from pathlib import Path
from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.dataset import Dataset
from brt_dist.data.cursor import Cursor
from brt_dist.errors import BrtError
from tests.remote_data import digest, read
url, cache, begin, steps, limit = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with Dataset.open(url, CacheSettings(cache, 2_400_000, 60.0)) as dataset:
        cursor = Cursor.from_json(begin) if begin else None
        for step in range(steps):
            segments, cursor = read(dataset, 1, cursor=cursor)
            print(json.dumps([digest(segments), cursor.to_json()]), flush=True)
except BrtError as error:
    sys.exit(str(error))
"""


def start_reader(url: str, cache: Path, begin: object, steps: int, limit: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", READER, url, str(cache), json.dumps(begin), str(steps), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
