"""`brt submit`, `status`, `logs`, `stop` and `resume` with real training, on this machine."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from brt_dist.event_log import events_of
from brt_dist.events import StepEvent
from tests.end_to_end.conftest import BRT, ROOT, alive, wait_for

pytestmark = pytest.mark.slow

ENDLESS = ("run.steps=100000", "run.checkpoint_every=100000", "run.tracking.enabled=false")


def call(*words: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([BRT, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def brt(*words: str) -> dict[str, Any]:
    done = call(*words, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def steps(run: Path) -> list[int]:
    return [event.step for event in events_of(run, StepEvent)]


def state(run: Path) -> str:
    return str(brt("status", str(run))["submission"]["state"])


def wait_for_end(run: Path) -> None:
    """Runs `brt status` once a second; more often would take the cores from the run."""
    wait_for(lambda: state(run) == "ended", f"the end of {run}", pause_seconds=1.0)


def run_folder(config: Path) -> Path:
    return config.parent / "run with 'quotes'"


def through_its_life(config: Path, folder: Path, *settings: str) -> None:
    """Submitted, refused a second time, stopped with a checkpoint, resumed from there, finished."""
    run = run_folder(config)
    made = call("submit", str(config), *ENDLESS, *settings, "--json", folder=folder)
    assert made.returncode == 0 and json.loads(made.stdout)["run"] == str(run), made.stderr
    try:
        wait_for(lambda: len(steps(run)) > 2 or state(run) == "ended", "the first steps", pause_seconds=1.0)
        assert state(run) == "running", brt("logs", str(run))["log"]
        again = call("submit", str(config), *ENDLESS, *settings)
        assert again.returncode == 18 and "in use by another" in again.stderr
    finally:
        done = call("stop", str(run))
    assert "was asked to save and stop" in done.stdout, done.stderr
    wait_for_end(run)
    found = brt("status", str(run))
    assert found["verdict"] == "preempted", brt("logs", str(run))["log"]
    saved = max(steps(run))
    assert found["checkpoint"] == f"checkpoints/step_{saved:08d}"
    refused = call("resume", str(run), "model.width=32")
    assert refused.returncode == 10 and "model.width: 16 in the run, 32 now" in refused.stderr

    record = brt("resume", str(run), f"run.steps={saved + 3}")["submission"]
    assert record["number"] == 2
    wait_for_end(run)
    found = brt("status", str(run))
    assert (found["verdict"], found["step"]) == ("finished", saved + 3), brt("logs", str(run))["log"]
    assert f"step_{saved + 3:08d}" in call("logs", str(run)).stdout


def test_this_machine(config: Path, hostile: Path) -> None:
    through_its_life(config, hostile)
    assert json.loads((run_folder(config) / "provenance.json").read_text())["run.name"] == f"{config}:5"
    assert (run_folder(config) / "submissions" / "001").stat().st_mode & 0o777 == 0o700


def test_a_submitted_run_does_not_depend_on_who_submitted_it(config: Path) -> None:
    made = brt("submit", str(config), *ENDLESS)["submission"]
    process = psutil.Process(int(made["job"]))
    assert process.terminal() is None and os.getsid(process.pid) == process.pid != os.getsid(0)
    assert call("stop", str(run_folder(config))).returncode == 0
    wait_for(lambda: not alive(process.pid), "the end")
