"""Saves of several ranks that go wrong, and which checkpoints are left of those that go well."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.pool import RankPool
from tests.parallel.relayout import attempt, config, documents, saved

pytestmark = pytest.mark.slow


def attempt_with_small_files(rank: int, store: str, given: Any, steps: int) -> list[float]:
    """As `attempt`, but rank 1 cannot write files of more than 20 kB: its disk is full, and only its."""
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return attempt(rank, store, given, steps)


def test_a_disk_that_is_full_on_one_rank(ranks: RankPool, tmp_path: Path) -> None:
    given = config(documents(tmp_path), tmp_path, {"data": 2, "tensor": 2})
    ranks.run(4, attempt, given, 1)
    before = saved(tmp_path / "checkpoints")
    with pytest.raises(AssertionError, match=r"could not save checkpoint step_00000002: rank 1: .*File too large"):
        ranks.run(4, attempt_with_small_files, given, 1)
    assert saved(tmp_path / "checkpoints") == before
    ranks.run(4, attempt, given, 1)  # continues from step 1
    assert saved(tmp_path / "checkpoints")["step"] == 2
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step_00000001", "step_00000002", "latest", ".lock"}


def test_the_newest_the_best_and_every_so_many_are_left(ranks: RankPool, tmp_path: Path) -> None:
    about = {"steps": 7, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 3, "keep_best": 1}
    # learns next to nothing, then much too fast: the first steps are the best
    wild = {"learning_rate": 3.0, "warmup_steps": 0, "schedule": "constant", "clip_norm": None}
    given = config(
        documents(tmp_path), tmp_path, {}, optimizer=wild, run={**about, "evaluate_every": 2, "evaluation_steps": 1}
    )
    ranks.run(1, attempt, given, 7)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {
        event["step"]: event["bits_per_token"]
        for event in events
        if event["event"] == "evaluation" and event["memory"] == "carried"
    }
    best = min(scores, key=lambda step: (scores[step], -step))
    assert sorted(scores) == [2, 4, 6, 7]
    left = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))
    assert left == sorted({3, 6, 7, best})
