"""`brt list` of an MLflow experiment says what `brt list` of the folder says: from a store and from a server."""

import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launch.cli import main
from tests.mlflow_server import mlflow_server
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CONFIG = """\
data: {{dataset: {folder}}}
run: {{name: {name}, directory: {run}, steps: 50, tracking: {{uri: {uri}}}}}
optimizer: {{warmup_steps: 2}}
"""
SAME = ("run", "state", "step", "steps", "loss", "bits_per_token", "tokens_per_second", "time")


def write_run(folder: Path, name: str, last: int, code: int, verdict: str, uri: str | None) -> None:
    run = folder / name
    attempt = run / "attempts" / "001"
    attempt.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(folder=folder, name=name, run=run, uri=uri or "null"))
    at = time.time() // 1 - 1000 + last
    record = {"attempt": 1, "start": at, "end": at + 500, "exit_code": code, "verdict": verdict, "reason": verdict}
    (attempt / "attempt.json").write_text(json.dumps(record))
    numbers = {"loss": 2.5, "bits_per_token": 3.6, "tokens_per_second": 1000.0 + last}
    events = [{"event": "attempt", "time": at, "attempt": 1, "start_step": 0}]
    events += [
        {"event": "step", "time": at + step, "attempt": 1, "step": step, **numbers} for step in range(1, last + 1)
    ]
    what = {"dataset": "validation", "memory": "carried", "loss": 2.0, "bits_per_token": 2.9, "tokens": 9}
    events.append({"event": "evaluation", "time": at + last, "attempt": 1, "step": last, **what})
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    subprocess.run([sys.executable, "-P", "-m", "launch.tracking.syncer", str(run)], check=True, capture_output=True)


def listed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object], str]:
    with pytest.raises(SystemExit) as end:
        main(["list", *arguments, "--json"])
    said = capsys.readouterr()
    return int(end.value.code or 0), json.loads(said.out), said.err


@pytest.mark.parametrize("kind", ["store", "server"])
def test_an_experiment_is_listed_as_its_folder_is(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    where: AbstractContextManager[str | None] = nullcontext(None)
    if kind == "server":
        where = mlflow_server(tmp_path / "server", free_port())
    runs = tmp_path / "runs"
    with where as uri:
        write_run(runs, "done", 50, 0, "finished", uri)
        write_run(runs, "stopped", 20, 17, "preempted", uri)
        client = MlflowClient(uri or f"sqlite:///{runs}/mlflow.db")
        experiment = client.get_experiment_by_name("brt")
        assert experiment is not None
        client.create_run(experiment.experiment_id)  # somebody else's
        place = [str(runs), *(["--mlflow", uri] if uri else ["--experiment", "brt"])]
        code, found, said = listed(*place, capsys=capsys)
        assert code == 0 and said == "" and found["others"] == 1 and found["experiment"] == "brt"
        _, in_folder, _ = listed(str(runs), capsys=capsys)
        rows, wanted = (
            [{key: row[key] for key in SAME} for row in one["runs"]]  # type: ignore[attr-defined]
            for one in (found, in_folder)
        )
        assert rows == wanted and [row["step"] for row in rows] == [50, 20]
        code, error, _ = listed(*place, "--experiment", "brd", capsys=capsys)
        assert code == 10 and error["error"] == "there is no experiment brd; nearest: brt"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or f"sqlite:///{runs}/mlflow.db")
        assert len(listed("--experiment", "brt", capsys=capsys)[1]["runs"]) == 2  # type: ignore[arg-type]


def test_what_cannot_be_read_is_one_message(tmp_path: Path, dead_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, error, _ = listed(str(tmp_path), "--experiment", "brt", capsys=capsys)
    assert code == 10 and str(error["error"]).startswith(f"no MLflow store {tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").write_text("no database")
    code, error, _ = listed(str(tmp_path), "--experiment", "brt", capsys=capsys)
    assert code == 18 and "cannot read the runs of sqlite:///" in str(error["error"])
    code, error, said = listed("--mlflow", f"http://me:hunter2@127.0.0.1:{dead_port}", capsys=capsys)
    assert code == 18 and "cannot read the runs of http://***@127.0.0.1" in str(error["error"])
    assert "hunter2" not in str(error) + said and "Traceback" not in said
