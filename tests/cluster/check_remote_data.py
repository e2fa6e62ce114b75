"""Tests of remote data that are too slow for `make test` or need root: a server away for a minute, a full disk.

`make -C tests/cluster remote-data`.  The disk is a real one of 900 kB, a tmpfs in a mount namespace of its own.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from brt_dist.data.dataset import Dataset
from tests.remote_data import READER, ROOT, digest, folder, healed, read, settings, store, truth, url
from tests.s3 import Bucket

__all__ = ["folder", "healed", "store", "truth", "url"]  # fixtures

AWAY_SECONDS = 60.0


def test_a_server_that_is_away_for_a_minute_changes_no_token(
    store: Bucket, url: str, truth: str, tmp_path: Path
) -> None:
    begun: list[float] = []

    def away(step: int) -> None:
        if step == 5:
            store.proxy.set(away=True)
            begun.append(time.monotonic())
            threading.Timer(AWAY_SECONDS, store.proxy.heal).start()

    with Dataset.open(url, settings(tmp_path, budget=10**6, retry=120.0)) as dataset:
        found, _ = read(dataset, before_step=away)
    assert digest(found) == truth
    assert time.monotonic() - begun[0] > AWAY_SECONDS  # what it needed was not there before


def test_a_disk_that_is_smaller_than_the_budget_is_made_do_with(folder: Path, url: str, tmp_path: Path) -> None:
    """No write succeeds beyond 900 kB, of a budget of 2.4 MB: least recently used files go, and everything is read."""
    done = on_a_disk_of("900k", url, tmp_path / "cache", steps=150)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)[0] for line in done.stdout.splitlines()]
    with Dataset.open(folder) as local:
        assert found == [digest([segments]) for segments in read(local, 150)[0]]


def test_a_disk_on_which_no_shard_fits_stops_the_run(url: str, tmp_path: Path) -> None:
    done = on_a_disk_of("60k", url, tmp_path / "cache", steps=5)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no space left for" in done.stderr and "set data.cache.directory to another disk" in done.stderr


def on_a_disk_of(size: str, url: str, cache: Path, steps: int) -> "subprocess.CompletedProcess[str]":
    cache.mkdir()
    script = 'mount -t tmpfs -o size="$1" brt "$2" && shift 2 && exec "$@"'
    reader = [sys.executable, "-c", READER, url, str(cache), "null", str(steps), "0"]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", size, str(cache), *reader]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
