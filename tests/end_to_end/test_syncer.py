"""The syncer against real MLflow stores: SQLite, a server that is killed and comes back, one that never answers."""

import getpass
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from launch.tracking.process import SyncerProcess
from tests.end_to_end.conftest import ROOT, alive, wait_for
from tests.mlflow_server import ADMIN, mlflow_server
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CONFIG = """\
model: {{width: 64}}
data: {{dataset: {dataset}}}
run: {{name: a run, directory: {run}, steps: 100, tracking: {{uri: {uri}, experiment: my experiment}}}}
optimizer: {{warmup_steps: 2}}
"""


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    configure(folder, dataset, None)
    return folder


def configure(run: Path, dataset: Path, uri: str | None) -> None:
    (run / "config.yaml").write_text(CONFIG.format(dataset=dataset, run=run, uri=uri or "null"))


def append(run: Path, first: int, last: int, at: float, attempt: int = 1) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        for step in range(first, last + 1):
            event = {"event": "step", "time": at + step, "attempt": attempt, "step": step, "loss": 100.0 - step}
            file.write(json.dumps(event) + "\n")


def begin(run: Path, attempt: int, start: int) -> None:
    folder = run / "attempts" / f"{attempt:03d}"
    folder.mkdir(parents=True)
    (folder / "attempt.json").write_text(json.dumps({"attempt": attempt, "host": "here", "git_commit": "abc"}))
    with open(run / "metrics.jsonl", "a") as file:
        event = {"event": "attempt", "time": 1.0, "attempt": attempt, "layout": {"tensor": 2}, "start_step": start}
        file.write(json.dumps(event) + "\n")


def end(run: Path, attempt: int, exit_code: int, at: float) -> None:
    path = run / "attempts" / f"{attempt:03d}" / "attempt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "end": at, "exit_code": exit_code}))


def synchronize(run: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "launch.tracking.syncer", str(run)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def found_run(uri: str) -> tuple[MlflowClient, Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("my experiment")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def losses(client: MlflowClient, found: Any) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(found.info.run_id, "loss/train")]


def test_everything_once_over_two_attempts_in_a_file_in_the_run(run: Path, dataset: Path) -> None:
    uri = f"sqlite:///{run.parent}/mlflow.db"
    begin(run, 1, 0)
    append(run, 1, 8, at=1000.0)
    end(run, 1, 17, at=1010.0)
    (run / "plots").mkdir()
    (run / "plots" / "loss.png").write_bytes(b"picture")
    (run / "report.html").write_text("<html></html>")
    assert synchronize(run).returncode == 0
    client, found = found_run(uri)
    assert (found.info.status, found.info.end_time) == ("KILLED", 1010000)

    begin(run, 2, 5)  # three steps were lost; they are repeated later
    append(run, 6, 10, at=2000.0, attempt=2)
    end(run, 2, 0, at=2020.0)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 100", "steps: 120"))
    for _ in range(2):  # the second has nothing to do
        assert synchronize(run).returncode == 0
    client, found = found_run(uri)
    expected = [(s, 100.0 - s, (1000 + s) * 1000) for s in range(1, 9)]
    expected += [(s, 100.0 - s, (2000 + s) * 1000) for s in (9, 10)]
    assert losses(client, found) == expected
    again = client.get_metric_history(found.info.run_id, "loss/train_attempt_2")
    assert [(m.step, m.timestamp) for m in again] == [(s, (2000 + s) * 1000) for s in (6, 7, 8)]
    assert (found.info.status, found.info.run_name, found.info.end_time) == ("FINISHED", "a run", 2020000)
    assert found.data.params["model.width"] == "64" and found.data.params["optimizer.learning_rate"] == "0.001"
    assert len(found.data.params) > 40 and "launch.slurm.partition" not in found.data.params
    tags = found.data.tags
    assert tags["mlflow.user"] == getpass.getuser() and "width 64" in tags["mlflow.note.content"]
    kind = client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    assert (tags["host"], tags["git_commit"], tags["layout"], tags["attempts"]) == ("here", "abc", "tensor=2", "2")
    assert (found.data.params["run.steps"], tags["changed.run.steps"]) == ("100", "120")
    (used,) = found.inputs.dataset_inputs
    digest = json.loads((dataset / "dataset.json").read_text())["digest"].removeprefix("sha256:")
    assert digest.startswith(used.dataset.digest) and len(used.dataset.digest) == 36
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    names = [item.path for item in client.list_artifacts(found.info.run_id)]
    assert names == ["attempts.json", "checkpoints.json", "config.yaml", "plots", "report.html"]
    (attempts,) = (run.parent / "mlartifacts").rglob("attempts.json")
    table = json.loads(attempts.read_text())
    assert [row[:4] for row in table["data"]] == [[1, 0, None, 1010.0], [2, 5, None, 2020.0]]
    assert list((run.parent / "mlartifacts").rglob("loss.png"))


def test_killed_at_any_moment_nothing_is_missing_or_double(run: Path) -> None:
    begin(run, 1, 0)
    append(run, 1, 3000, at=1000.0)
    end(run, 1, 14, at=1010.0)
    state = run / "tracking" / "state.json"
    for offset in (0, 1, 100_000):
        process = subprocess.Popen([sys.executable, "-m", "launch.tracking.syncer", str(run)], cwd=ROOT, stderr=-3)
        wait_for(lambda least=offset: state.exists() and json.loads(state.read_text())["offset"] >= least, "the state")
        process.send_signal(signal.SIGKILL)
        process.wait()
    # and as if killed after a batch was sent, before that was recorded
    kept = json.loads(state.read_text())
    state.write_text(json.dumps({**kept, "offset": 0, "sent": {}}))
    assert synchronize(run).returncode == 0
    client, found = found_run(f"sqlite:///{run.parent}/mlflow.db")
    assert [step for step, _, _ in losses(client, found)] == list(range(1, 3001))
    assert found.info.status == "FAILED"


def test_a_server_that_is_killed_and_comes_back_10_000_steps_later(run: Path, dataset: Path, tmp_path: Path) -> None:
    port = free_port()
    with_password = f"http://user:hunter2@127.0.0.1:{port}"
    configure(run, dataset, with_password)
    begin(run, 1, 0)
    append(run, 1, 10, at=1000.0)
    syncer = SyncerProcess(run, finish_seconds=120)
    state = run / "tracking" / "state.json"
    try:
        with mlflow_server(tmp_path / "server", port) as uri:
            wait_for(lambda: state.exists() and json.loads(state.read_text())["offset"] > 0, "the first batch")
        append(run, 11, 10_000, at=1000.0)
        wait_for(lambda: "retrying in" in (run / "tracking" / "syncer.log").read_text(), "the syncer to notice")
        end(run, 1, 0, at=2000.0)
        with mlflow_server(tmp_path / "server", port) as uri:
            assert syncer.finish()
            _, found = found_run(uri)
            assert found.info.status == "FINISHED"
            with closing(sqlite3.connect(tmp_path / "server" / "server.db")) as store:  # all, and none twice
                query = "SELECT step, value, timestamp FROM metrics WHERE key = 'loss/train' ORDER BY step"
                sent = store.execute(query).fetchall()
            assert sent == [(step, 100.0 - step, (1000 + step) * 1000) for step in range(1, 10_001)]
            shown = "".join(found.data.params.values()) + "".join(found.data.tags.values())
            assert "hunter2" not in shown
    finally:
        syncer.kill()
    files = [path for path in (tmp_path / "server").rglob("*") if path.is_file() and path.suffix != ".db"]
    assert any(path.name == "config.yaml" for path in files)
    assert any(b"***" in path.read_bytes() for path in files if path.name == "config.yaml")
    for path in [*files, *(run / "tracking").iterdir()]:
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


def test_a_server_that_never_answers_is_waited_for_a_bounded_time(run: Path, dataset: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        configure(run, dataset, f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin(run, 1, 0)
        append(run, 1, 3, at=1000.0)
        taken: list[socket.socket] = []
        threading.Thread(target=lambda: taken.append(silent.accept()[0]), daemon=True).start()
        syncer = SyncerProcess(run, finish_seconds=2)
        try:
            wait_for(lambda: taken, "the syncer to call")
            began = time.monotonic()
            assert not syncer.finish()
            assert time.monotonic() - began < 60  # far from the two minutes and seven retries of MLflow's own
            assert not alive(syncer.pid)
        finally:
            syncer.kill()
        # the launcher killed: the syncer gives up by itself
        syncer = SyncerProcess(run, finish_seconds=1)
        try:
            syncer._close()
            wait_for(lambda: not alive(syncer.pid), "the syncer to give up")
        finally:
            syncer.kill()


def test_two_syncers_of_one_run_and_no_run_at_all(run: Path, tmp_path: Path) -> None:
    begin(run, 1, 0)
    syncer = SyncerProcess(run)
    try:
        wait_for((run / "tracking" / "state.json").exists, "the first syncer")
        done = synchronize(run)
        assert done.returncode == 1 and "process is already sending" in done.stderr and "Traceback" not in done.stderr
    finally:
        syncer.kill()
    done = synchronize(tmp_path)
    assert done.returncode == 10 and "is not a run directory" in done.stderr


def test_wrong_credentials_are_told_and_right_ones_send_everything(run: Path, dataset: Path, tmp_path: Path) -> None:
    port = free_port()
    configure(run, dataset, f"http://127.0.0.1:{port}")
    begin(run, 1, 0)
    append(run, 1, 10, at=1000.0)
    (run / "system").mkdir()
    samples = [{"event": "system", "time": 1000.0 + at, "cpu_utilization_percentage": 10.0 * at} for at in range(3)]
    (run / "system" / "node-a.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    wrong = {"MLFLOW_TRACKING_USERNAME": ADMIN[0], "MLFLOW_TRACKING_PASSWORD": "hunter2"}
    right = {"MLFLOW_TRACKING_USERNAME": ADMIN[0], "MLFLOW_TRACKING_PASSWORD": ADMIN[1]}
    with mlflow_server(tmp_path / "server", port, passwords=True) as uri:
        done = synchronize(run, **wrong)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "HTTP 401" in done.stderr and "MLFLOW_TRACKING_PASSWORD" in done.stderr
        told = json.loads((run / "tracking" / "health.json").read_text())
        assert told["state"] == "refused" and "HTTP 401" in told["problem"]
        end(run, 1, 0, at=2000.0)
        assert synchronize(run, **right).returncode == 0
        with pytest.MonkeyPatch.context() as patch:
            for name, value in right.items():
                patch.setenv(name, value)
            client, found = found_run(uri)
            assert [step for step, _, _ in losses(client, found)] == list(range(1, 11))
            curve = client.get_metric_history(found.info.run_id, "system/node-a/cpu_utilization_percentage")
            assert [(m.step, m.value, m.timestamp) for m in curve] == [
                (at, 10.0 * at, 1000_000 + 1000 * at) for at in range(3)
            ]
    assert json.loads((run / "tracking" / "health.json").read_text())["state"] == "sending"
    secret = [ADMIN[1].encode(), b"hunter2"]
    for path in run.rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in secret), path
    for path in (tmp_path / "server").rglob("*"):  # its own users apart
        if path.is_file() and path.name not in ("auth.ini", "users.db"):
            assert not any(word in path.read_bytes() for word in secret), path
