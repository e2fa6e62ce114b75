"""`brt submit`, `status`, `logs`, `stop` and `resume` with real backends: this machine, and Ray's job API."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.events import read_events
from launch.ray_node import token_environment
from tests.end_to_end.conftest import ROOT, alive, wait_for

pytestmark = pytest.mark.slow

ENDLESS = ("run.steps=100000", "run.checkpoint_every=100000", "run.tracking.enabled=false")


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def brt(*words: str) -> dict[str, Any]:
    done = call(*words, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def steps(run: Path) -> list[int]:
    return [event["step"] for event in read_events(run) if event["event"] == "step"]


def state(run: Path) -> str:
    return str(brt("status", str(run))["submission"]["state"])


def run_folder(config: Path) -> Path:
    return config.parent / "run with 'quotes'"


def through_its_life(config: Path, *settings: str) -> None:
    """Submitted, refused a second time, stopped with a checkpoint, resumed from there, finished."""
    run = run_folder(config)
    made = brt("submit", str(config), *ENDLESS, *settings)
    assert made["run"] == str(run)
    try:
        wait_for(lambda: len(steps(run)) > 2 or state(run) == "ended", "the first steps")
        assert state(run) == "running", brt("logs", str(run))["log"]
        again = call("submit", str(config), *ENDLESS, *settings)
        assert again.returncode == 18 and "in use by another" in again.stderr
    finally:
        done = call("stop", str(run))
    assert "was told to save and end" in done.stdout, done.stderr
    wait_for(lambda: state(run) == "ended", "the end")
    found = brt("status", str(run))
    assert found["verdict"] == "preempted", brt("logs", str(run))["log"]
    saved = max(steps(run))
    assert found["checkpoint"] == f"checkpoints/step_{saved:08d}"
    refused = call("resume", str(run), "model.width=32")
    assert refused.returncode == 10 and "model.width: 16 in the run, 32 now" in refused.stderr

    record = brt("resume", str(run), f"run.steps={saved + 3}")["submission"]
    assert record["number"] == 2
    wait_for(lambda: state(run) == "ended", "the end of the resumed run")
    found = brt("status", str(run))
    assert (found["verdict"], found["step"]) == ("finished", saved + 3), brt("logs", str(run))["log"]
    assert f"step_{saved + 3:08d}" in call("logs", str(run)).stdout
    assert json.loads((run / "provenance.json").read_text())["run.name"] == f"{config}:5"


def test_this_machine(config: Path) -> None:
    through_its_life(config)
    assert (run_folder(config) / "submissions" / "001").stat().st_mode & 0o777 == 0o700


def test_a_submitted_run_does_not_depend_on_who_submitted_it(config: Path) -> None:
    made = brt("submit", str(config), *ENDLESS)["submission"]
    process = psutil.Process(int(made["job"]))
    assert process.terminal() is None and os.getsid(process.pid) == process.pid != os.getsid(0)
    assert call("stop", str(run_folder(config))).returncode == 0
    wait_for(lambda: not alive(process.pid), "the end")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Ray head that takes jobs; yields the URL of its dashboard and the file of its token."""
    folder = tmp_path / "ray"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "launch.ray_node", str(folder), "--node", "0"]
    command += ["--dashboard", "--dashboard-port", str(port)]
    # How long Ray lets a job save after `stop`; its default is three seconds.
    environment = {**os.environ, **token_environment(folder), "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_for(lambda: (folder / "head").exists() or process.poll() is not None, "the head")
        host = (folder / "head").read_text().partition(":")[0]
        yield f"http://{host}:{port}", folder / "token"
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        assert not psutil.wait_procs(below, timeout=30)[1]


def test_jobs_of_a_ray_cluster(config: Path, head: tuple[str, Path], tmp_path: Path) -> None:
    address, token = head
    settings = ["launch.backend=ray", f"launch.ray.jobs_address={address}", f"launch.ray.working_directory={ROOT}"]
    settings += [f"launch.ray.python={sys.executable}"]
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    refused = call("submit", str(config), *settings, f"launch.ray.token_file={wrong}")
    assert refused.returncode == 18 and "is launch.ray.token_file the cluster's token?" in refused.stderr
    through_its_life(config, *settings, f"launch.ray.token_file={token}")
    assert token.read_text() not in "".join(
        path.read_text(errors="replace") for path in run_folder(config).rglob("*") if path.is_file()
    )
