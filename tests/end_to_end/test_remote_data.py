"""Data on an object store: whatever the network, the disk and the processes do, never a wrong token.

Every test compares the hash of all inputs, targets, masks and starts with that of the same steps read from the
local folder, or finds a clear message instead.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.format import ShardRecord
from brt_dist.data.prefetch import NodeCache, is_served
from brt_dist.data.reader import Prefetcher, SegmentReader, Segments
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import DataError, PlatformError
from launch.nodes.ray_agents import node_cache_actor
from pipelines.cluster import ray_cluster
from tests.datasets import make_dataset
from tests.s3 import Bucket, bucket

pytestmark = pytest.mark.slow
STREAMS, SEGMENT, WINDOW, STEPS = 8, 64, 16, 200
ROOT = Path(__file__).parents[2]


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


READER = """
import json, resource, sys, time
from pathlib import Path
from brt_dist.data.file_cache import CacheSettings
from brt_dist.data.dataset import Dataset
from brt_dist.data.cursor import Cursor
from brt_dist.errors import BrtError
from tests.end_to_end.test_remote_data import digest, read
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


def test_kill_and_resume_read_the_same(url: str, folder: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of fetching; the next process continues from the last cursor, with the same cache."""
    with Dataset.open(folder) as local:
        right = [digest([segments]) for segments in read(local, 40)[0]]
    found: list[str] = []
    cursor: object = None
    for kill_after in (6, 11, None):
        process = start_reader(url, tmp_path / "cache", cursor, 40 - len(found))
        assert process.stdout
        for number, line in enumerate(process.stdout):
            sha256, cursor = json.loads(line)
            found.append(sha256)
            if kill_after is not None and number == kill_after:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
    assert found == right


def test_a_disk_on_which_no_shard_fits(url: str, tmp_path: Path) -> None:
    """Files may have 30 kB in this process: the system then reports that a file does not fit."""
    process = start_reader(url, tmp_path / "cache", None, 5, limit=30_000)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "no space left for" in errors and "set data.cache.directory to another disk" in errors


def test_a_cache_process_serves_the_readers_of_its_node(url: str, truth: str, tmp_path: Path) -> None:
    """It fetches ahead, the readers fetch what they need sooner; when it dies they continue by themselves."""
    cache = settings(tmp_path)
    node = NodeCache(cache.directory, cache.budget, cache.retry_seconds, {})
    second = NodeCache(cache.directory, cache.budget, cache.retry_seconds, {})

    def announced() -> list[Path]:
        lists = [json.loads(path.read_text()) for path in cache.directory.glob("requests/[0-9]*-*")]
        return [cache.directory / sha256 for files in lists for _, sha256, *_ in files]

    def stop_it(step: int) -> None:
        # What is announced is read 30 steps later: a reader that waits at each step leaves fetching to the node.
        deadline = time.monotonic() + 30
        while step < 150 and not all(map(Path.exists, announced())) and time.monotonic() < deadline:
            time.sleep(0.01)
        if step == 150:
            node.close()

    with Dataset.open(url, cache) as dataset:
        found, _ = read(dataset, before_step=stop_it, ahead=30)
    assert digest(found) == truth
    assert node.describe()["files"] >= 1 and second.describe()["files"] == 0


def test_a_cache_actor_that_is_killed_is_followed_by_another(url: str, truth: str, tmp_path: Path) -> None:
    """kill -9 in the middle of reading: two readers continue, and the next process serves them."""
    cache = settings(tmp_path, budget=10**6)  # a third of the shards: there is always something to fetch
    with ray_cluster(None, num_cpus=1):
        import ray  # not before: it reads its settings when it is imported

        actor = node_cache_actor(cache.directory, cache.budget, cache.retry_seconds, {})
        before = ray.get(actor.describe.remote())["pid"]

        def kill(step: int) -> None:
            if step == 60:
                os.kill(before, signal.SIGKILL)
                deadline = time.monotonic() + 120
                while not (is_served(cache.directory) and _new_pid(actor, before)) and time.monotonic() < deadline:
                    time.sleep(0.1)

        with Dataset.open(url, cache) as dataset:
            half, rest = range(STREAMS // 2), range(STREAMS // 2, STREAMS)
            found = [read(dataset, streams=half, before_step=kill)[0], read(dataset, streams=rest)[0]]
        assert is_served(cache.directory) and _new_pid(actor, before)
    assert digest(*found) == truth


def _new_pid(actor: Any, before: int) -> bool:
    import ray

    try:
        return bool(ray.get(actor.describe.remote(), timeout=10)["pid"] != before)
    except ray.exceptions.RayError:
        return False


def test_training_on_a_mixture_is_the_same_from_local_folders_and_from_s3(
    store: Bucket, url: str, folder: Path, tmp_path: Path
) -> None:
    """`brt train` with two ranks: losses equal bit for bit; the node's cache actor fetches for both."""
    texts = [f"another document, number {number}. " * 30 for number in range(8)]
    other = make_dataset(tmp_path / "other", texts).folder
    losses: dict[str, list[float]] = {}
    for name, place in (("local", folder), ("s3", url)):
        run = tmp_path / name
        config = tmp_path / f"{name}.yaml"
        config.write_text(TRAINING.format(one=place, other=other, run=run, cache=tmp_path / "cache"))
        command = [sys.executable, "-m", "launch.cli", "train", str(config)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stderr
        events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        steps = [event for event in events if event["event"] == "step"]
        losses[name] = [event["loss"] for event in steps]
        assert all(event["data_wait_seconds"] >= 0 for event in steps)
    assert losses["local"] == losses["s3"] and len(losses["s3"]) == 6
    assert (tmp_path / "cache" / "locks.server").exists()  # only the actor makes it


TRAINING = """\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{mixture: [{{dataset: "{one}", weight: 0.7}}, {{dataset: "{other}", weight: 0.3}}], validation: "{one}",
  segment: 16, streams: 4, cache: {{directory: "{cache}", budget_gb: 0.0012, ahead_steps: 4}}}}
parallel: {{data: 2}}
optimizer: {{warmup_steps: 2}}
run: {{directory: "{run}", steps: 6, precision: fp32, device: cpu, evaluation_steps: 2, tracking: {{enabled: false}}}}
"""
