"""The start of a rank: its parts, timed and reported; and what it does not import."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brt_dist.run_directory import RunDirectory
from brt_dist.starting import BEGAN, Starting


def test_every_moment_of_a_start_belongs_to_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time() - 1e6
    monkeypatch.setenv(BEGAN, str(began))  # of the launcher, long before this process
    attempt = RunDirectory(tmp_path).attempt(3)
    starting = Starting(attempt)
    for part in ("importing torch", "data", "importing torch", "first step"):
        starting.begin(part)
        beat = json.loads(attempt.heartbeat.read_text())
        assert (beat["phase"], beat["detail"], beat["step_seconds"]) == ("starting", part, None)
    found = starting.end()
    assert list(found) == ["launcher", "python", "importing torch", "data", "first step"]
    assert sum(found.values()) == pytest.approx(time.time() - began, abs=1.0) and found["launcher"] > 1e5
    assert not list(attempt.path.glob("*.new"))


def test_without_a_launcher_nothing_is_written_and_its_part_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BEGAN, raising=False)
    monkeypatch.chdir(tmp_path)
    found = Starting(None).end()
    assert found["launcher"] == 0 and found["python"] > 0 and not list(tmp_path.iterdir())


def test_a_rank_imports_neither_mlflow_nor_ray(tmp_path: Path) -> None:
    """DeepSpeed would import MLflow, which takes seconds of each rank's start."""
    program = (
        "import sys\n"
        "from brt_dist.parallel.device import choose\n"
        "choose('cpu', 0)\n"
        "import brt_dist.training.build\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules if sys.modules[name] is not None}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "deepspeed" in done.stdout.split() and not {"mlflow", "ray", "pandas"} & set(done.stdout.split())
