"""The whole path with nothing replaced: text, shards, `brt train` with real ranks, checkpoints, MLflow."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from brt_dist.errors import ExitCode
from launch.run.attempt_record import read_attempt
from tests.end_to_end.conftest import BRT, ROOT, alive, wait_for

pytestmark = pytest.mark.slow

STEPS = 24
CONFIG = """\
model: {{layers: 3, width: 32, heads: 2, head_dim: 16, mlp_width: 64, window: 16, states: 8, recurrent_layers: [1],
  dropout: 0.1}}
data: {{dataset: {dataset}, validation: {dataset}, segment: 32, streams: 4}}
parallel: {{tensor: 2, micro_batch: 2}}
optimizer: {{learning_rate: 3.0e-3, warmup_steps: 2}}
run: {{name: tiny, directory: {run}, steps: {steps}, precision: fp32, device: cpu, checkpoint_every: 4,
  evaluation_steps: 3}}
launch: {{recovery: {{pause_seconds: 0.1}}}}
"""


def write_config(folder: Path, dataset: Path, name: str, steps: int = STEPS) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(dataset=dataset, run=folder / name, steps=steps))
    return path


def brt_train(config: Path, *overrides: str, folder: Path = ROOT) -> "subprocess.Popen[str]":
    command = [BRT, "train", str(config), *overrides, "--json"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    out, errors = process.communicate(timeout=300)
    return process.returncode, json.loads(out) if out.strip() else {}, errors


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(run, "step")}


def worker_pids(run: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "brt_dist.worker" in words and str(run) in words:
            found.append(process.pid)
    return found


def test_a_run_with_a_killed_rank_goes_on_by_itself_and_ends_as_the_one_without(
    dataset: Path, tmp_path: Path, hostile: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    code, outcome, errors = finish(brt_train(write_config(tmp_path, dataset, "straight"), "run.tracking.enabled=false"))
    assert code == 0, errors
    assert (outcome["verdict"], outcome["step"]) == ("finished", STEPS)
    assert losses(straight).keys() == set(range(1, STEPS + 1))
    assert losses(straight)[STEPS] < losses(straight)[1] - 0.5
    named = {(e["dataset"], e["memory"]) for e in outcome["evaluations"]}
    parts = {("validation", f"{part} cleared") for part in ("state", "cache")}
    assert named == parts | {(d, m) for d in ("train", "validation") for m in ("carried", "cleared")}
    for log in straight.glob("attempts/001/rank_*.log"):
        assert not re.search("Warning|warnings|Max_MA|DeepSpeed", log.read_text()), log.read_text()
    parts_of_start = [set(event) - {"event", "time", "attempt", "step"} for event in events(straight, "start")]
    assert len(parts_of_start) == 1 and {"launcher", "data", "first step"} <= parts_of_start[0]
    assert "starting Ray" not in errors
    code, again, errors = finish(brt_train(tmp_path / "straight.yaml", "run.tracking.enabled=false"))
    assert code == 0 and f"finished already, after step {STEPS}" in again["reason"], errors
    assert again["step"] == STEPS and not (straight / "attempts" / "002").exists()

    process = brt_train(write_config(tmp_path, dataset, "killed"), folder=hostile)
    wait_for(lambda: len(events(killed, "checkpoint")) >= 2, "two checkpoints")
    pids = worker_pids(killed)
    assert pids
    os.kill(pids[0], signal.SIGKILL)
    code, outcome, errors = finish(process)
    assert code == 0, errors
    assert not [pid for pid in pids if alive(pid)]
    assert "attempt 1 failed" in errors and "was killed (SIGKILL)" in errors
    starts = [event["start_step"] for event in events(killed, "attempt")]
    assert starts[0] == 0 and starts[1] >= 8 and starts[1] % 4 == 0
    records = [read_attempt(killed, number) for number in (1, 2)]
    assert [record.decision["action"] for record in records] == ["retry", "stop"]
    # every line, also of steps that ran twice, equals that of the uninterrupted run
    assert all(event["loss"] == losses(straight)[event["step"]] for event in events(killed, "step"))
    assert losses(killed) == losses(straight)
    last = [[e["loss"] for e in events(run, "evaluation")][-6:] for run in (straight, killed)]
    assert last[0] == last[1]
    in_mlflow(killed, losses(straight))


def in_mlflow(run: Path, truth: dict[int, float]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("brt").experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss/train")
    assert [(metric.step, metric.value) for metric in history] == sorted(truth.items())
    assert found.data.params["model.mixers.recurrent.cell"] == "skip"
    (tracked,) = [i for i in found.inputs.dataset_inputs if i.dataset.name and "validation" not in str(i.tags)][:1]
    assert tracked.dataset.digest


def test_ctrl_c_saves_and_leaves_nothing_running(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    config = write_config(tmp_path, dataset, "stopped", steps=100_000)
    process = brt_train(config, "run.checkpoint_every=100000", "run.tracking.enabled=false")
    wait_for(lambda: len(events(run, "step")) >= 3, "three steps")
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    code, outcome, errors = finish(process)
    assert code == ExitCode.PREEMPTED, errors
    assert (run / outcome["checkpoint"]).is_dir()
    assert not [child for child in children if alive(child.pid)] and not worker_pids(run)


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, dataset, "diverged")
    settings = ["optimizer.learning_rate=1e18", "optimizer.warmup_steps=0", "optimizer.clip_norm=null"]
    code, outcome, errors = finish(brt_train(config, *settings, "run.tracking.enabled=false"))
    assert code == ExitCode.DIVERGED, errors
    assert "last checkpoint is untouched" in errors + json.dumps(outcome)
    assert "Traceback" not in errors
    assert outcome["checkpoint"] is None


def test_ranks_run_under_torchrun_too(dataset: Path, tmp_path: Path) -> None:
    from brt_dist.config.loading import dump, load

    run = tmp_path / "alone"
    run.mkdir()
    config = load(write_config(tmp_path, dataset, "alone", steps=3)).config
    (run / "config.yaml").write_text(dump(config))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "brt_dist.worker", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(run).keys() == {1, 2, 3}
    assert (run / "checkpoints" / "latest").read_text().strip() == "step_00000003"
