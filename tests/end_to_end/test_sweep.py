"""`brt sweep` with real training: refused, stopped, resumed, and found in MLflow as one run with children."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brt_dist.event_log import events_of
from brt_dist.events import StepEvent
from tests.end_to_end.conftest import ROOT, wait_for

pytestmark = pytest.mark.slow

STEPS = 40
GRID = ("--grid", "optimizer.learning_rate=0.003,0.001")


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"""\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{dataset: {dataset}, segment: 16, streams: 4}}
optimizer: {{warmup_steps: 2}}
run: {{name: "a 'tiny' sweep", directory: {tmp_path / "sweep"}, steps: {STEPS}, precision: fp32, device: cpu,
  evaluation_steps: 2}}
""")
    return path


def brt_sweep(config: Path, *settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch.cli", "sweep", str(config), *settings, "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    out, errors = process.communicate(timeout=300)
    return process.returncode, json.loads(out), errors


def test_combinations_that_cannot_run_are_refused_before_any_is_started(config: Path) -> None:
    code, found, errors = finish(
        brt_sweep(config, *GRID, "--grid", "model.head_dim=8,16", "--grid", "data.segment=16,20")
    )
    assert code == 10 and "Traceback" not in errors
    assert "4 of 8 runs cannot be trained; none was started" in found["error"]
    assert "learning_rate=0.001,head_dim=16,segment=20" in found["error"]
    assert not (config.parent / "sweep").exists()
    code, found, _ = finish(brt_sweep(config, *GRID, "--dry-run"))
    assert (code, found["would_train"]) == (0, ["learning_rate=0.003", "learning_rate=0.001"])
    assert not (config.parent / "sweep").exists()
    code, found, _ = finish(brt_sweep(config, *GRID, "--submit"))
    assert code == 10 and "without --submit" in found["error"]


@pytest.mark.long
def test_a_sweep_is_stopped_and_gone_on_with(config: Path) -> None:
    from mlflow import MlflowClient

    folder = config.parent / "sweep"
    first, second = folder / "learning_rate=0.003", folder / "learning_rate=0.001"
    process = brt_sweep(config, *GRID)
    wait_for(lambda: bool(events_of(first, StepEvent)) or process.poll() is not None, "a step")
    os.kill(process.pid, signal.SIGINT)
    code, found, errors = finish(process)
    assert code == 17, errors
    assert [run["verdict"] for run in found["runs"]] == ["preempted", "not started"]
    assert 0 < found["runs"][0]["step"] < STEPS and not second.exists()
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    assert parent_of(client)[0].info.status == "KILLED"

    code, found, errors = finish(brt_sweep(config, *GRID))
    assert code == 0, errors
    assert [(run["verdict"], run["step"]) for run in found["runs"]] == [("finished", STEPS)] * 2
    assert found["best"]["bits_per_token"] == min(run["bits_per_token"] for run in found["runs"])
    losses = [[event.loss for event in events_of(run, StepEvent)] for run in (first, second)]
    assert losses[0] != losses[1] and len(losses[0]) == len(losses[1]) == STEPS
    assert "learning_rate=0.001" in Path(found["report"]).read_text()
    parent, children = parent_of(client)
    assert parent.info.status == "FINISHED" and parent.info.run_name == "a _tiny_ sweep"
    assert json.loads(parent.data.tags["grid"]) == {"optimizer.learning_rate": ["0.003", "0.001"]}
    assert parent.data.tags["best"] == Path(found["best"]["run"]).name
    assert {child.data.params["optimizer.learning_rate"] for child in children} == {"0.003", "0.001"}
    assert {child.info.run_name for child in children} == {f"a 'tiny' sweep {run.name}" for run in (first, second)}

    _, found, errors = finish(brt_sweep(config, *GRID))  # nothing is left to do
    assert errors.count("finished already") == 2 and not (first / "attempts" / "003").exists()


def parent_of(client: Any) -> tuple[Any, list[Any]]:
    """The one run that has children, and those."""
    runs = client.search_runs([client.get_experiment_by_name("brt").experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    return parent, children
