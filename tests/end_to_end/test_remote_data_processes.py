"""Data on an object store: readers that are killed, a full disk, a node's cache in a process of its own, training.

As in test_remote_data.py, what is read is compared with what is read from the local folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from brt_dist.data.dataset import Dataset
from brt_dist.data.prefetch import NodeCache, is_served
from launch.nodes.ray_agents import node_cache_actor
from pipelines.cluster import ray_cluster
from tests.datasets import make_dataset
from tests.remote_data import ROOT, STREAMS, digest, folder, healed, read, settings, start_reader, store, truth, url
from tests.s3 import Bucket

__all__ = ["folder", "healed", "store", "truth", "url"]  # fixtures
pytestmark = pytest.mark.slow


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
