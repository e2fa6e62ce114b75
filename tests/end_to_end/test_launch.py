"""`brt train` with real processes: ranks that meet, fail, crash or are stopped; and a launcher that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from brt_dist.event_log import events_of
from brt_dist.events import StepEvent
from tests.end_to_end.conftest import ROOT, Cluster, alive, wait_for

pytestmark = pytest.mark.slow

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GOOGLE_API_KEY")
WITHOUT_TRACKING = "run.tracking.enabled=false"


def drive(
    program: str, config: Path, *settings: str, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.drive", program, str(config), *settings],
        cwd=ROOT,
        env=environment or dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own process group, which gets Ctrl-C at a terminal
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, json.loads(out) if out.strip() else {}, err


def run_folder(config: Path) -> Path:
    return config.parent / "run with 'quotes'"


def rank_pids(config: Path, attempt: int = 1) -> list[int]:
    """Of the ranks and the helpers that they started in sessions of their own."""
    return [int(path.read_text()) for path in (run_folder(config) / "attempts" / f"{attempt:03d}").glob("*.pid")]


def test_ranks_on_two_nodes_meet_and_the_run_goes_on_in_one_mlflow_run(config: Path, cluster: Cluster) -> None:
    from mlflow import MlflowClient

    settings = [f"launch.ray_address={cluster.address}", "launch.nodes=2", "run.tracking.system_seconds=0.05"]
    environment = {**cluster.environment, **dict.fromkeys(SECRETS, "hunter2")}
    for attempt in (1, 2):
        code, outcome, errors = finish(drive("train", config, *settings, environment=environment))
        assert code == 0, (outcome, errors)
        assert (outcome["verdict"], outcome["step"], outcome["tracked"]) == ("finished", 2 * attempt, True)
        settings.append("run.steps=8")  # may change
    run = run_folder(config)
    for attempt in ("001", "002"):
        for rank in ("000", "001"):
            assert (run / "attempts" / attempt / f"rank_{rank}.log").read_text().endswith("the sum is 3.0\n")
    record = json.loads((run / "attempts" / "002" / "attempt.json").read_text())
    assert record["exit_codes"] == {"0": 0, "1": 0} and len(record["nodes"]) == 2
    assert json.loads((run / "provenance.json").read_text())["run.steps"] == "command line"
    assert (run / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")

    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("brt").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss/train")
    assert [(metric.step, metric.value) for metric in history] == [(step, 3.0) for step in (1, 2, 3, 4)]
    events = events_of(run, StepEvent)
    assert [metric.timestamp for metric in history] == [round(event.time * 1000) for event in events]
    assert found.info.status == "FINISHED"
    assert len(found.data.tags["hosts"].split(", ")) == 2 and found.data.tags["backend"] == "none (brt train)"
    host = socket.gethostname()
    (samples,) = (run / "system").iterdir()
    assert samples.name == f"{host}.jsonl"
    assert client.get_metric_history(found.info.run_id, f"system/{host}/cpu_utilization_percentage")
    artifacts = list((run.parent / "mlartifacts").rglob("*"))
    assert artifacts
    for path in [*run.rglob("*"), run.parent / "mlflow.db", *artifacts]:
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    assert found.data.tags["attempts"] == "2" and found.data.tags["changed.run.steps"] == "8"


def test_the_first_error_of_the_first_failing_rank_is_shown(config: Path, cluster: Cluster) -> None:
    settings = [f"launch.ray_address={cluster.address}", WITHOUT_TRACKING]
    code, outcome, errors = finish(drive("fail", config, *settings, environment=cluster.environment))
    assert code == 14, errors
    assert outcome["failed_rank"] == 1
    assert outcome["reason"] == "rank 1 on here failed: DivergedError: the loss is not finite at step 3"
    assert len(pids := rank_pids(config)) == 2 and not any(alive(pid) for pid in pids)


def test_a_crash_without_report_ends_also_a_rank_that_ignores_term(config: Path, cluster: Cluster) -> None:
    settings = [f"launch.ray_address={cluster.address}", WITHOUT_TRACKING, "launch.recovery.retries=0"]
    code, outcome, errors = finish(drive("crash", config, *settings, environment=cluster.environment))
    assert code == 1, errors
    assert outcome["reason"] == "rank 1 crashed (SIGSEGV)"
    assert outcome["detail"] == "last words"
    assert len(pids := rank_pids(config)) == 3 and not any(alive(pid) for pid in pids)


def test_too_many_nodes_are_refused_with_what_would_do(config: Path, cluster: Cluster) -> None:
    settings = [f"launch.ray_address={cluster.address}", "launch.nodes=4", "parallel.data=4", WITHOUT_TRACKING]
    code, _, errors = finish(
        drive("train", config, *settings, "launch.start_timeout_seconds=2", environment=cluster.environment)
    )
    assert code == 16
    assert "it has 2 nodes" in errors and "nearest: launch.nodes=2" in errors
    assert "Traceback" not in errors


def test_kill_9_of_the_launcher_leaves_no_rank_on_a_cluster_that_lives_on(config: Path, cluster: Cluster) -> None:
    settings = [f"launch.ray_address={cluster.address}", "launch.nodes=2", WITHOUT_TRACKING]
    launcher = drive("wait", config, *settings, environment=cluster.environment)
    wait_for(lambda: len(rank_pids(config)) == 4 or launcher.poll() is not None, "the ranks")
    launcher.kill()
    launcher.communicate()
    pids = rank_pids(config)
    assert len(pids) == 4
    wait_for(lambda: not any(alive(pid) for pid in pids), "the ranks to be gone")
    assert all(process.poll() is None for process in cluster.processes)


def running(config: Path) -> bool:
    return len(rank_pids(config)) == 4 and bool(events_of(run_folder(config), StepEvent))


ON = pytest.mark.parametrize("on", [[], ["launch.ray_address=local"]], ids=["without Ray", "with Ray"])


@ON
def test_ctrl_c_saves_and_leaves_nothing_behind(config: Path, on: list[str]) -> None:
    launcher = drive("wait", config, *on)
    wait_for(lambda: running(config) or launcher.poll() is not None, "the first step")
    everything = [child.pid for child in psutil.Process(launcher.pid).children(recursive=True)]
    assert set(rank_pids(config)) <= set(everything)
    of_ray = [pid for pid in everything if "gcs_server" in " ".join(psutil.Process(pid).cmdline()[:1])]
    assert len(of_ray) == len(on)
    listening = {
        address.laddr.ip
        for pid in everything
        for address in psutil.Process(pid).net_connections()
        if address.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    os.killpg(launcher.pid, signal.SIGINT)
    code, outcome, errors = finish(launcher)
    assert code == 17, errors
    assert outcome["checkpoint"] == "checkpoints/saved" and outcome["tracked"] is True
    assert not [pid for pid in everything if alive(pid)]
    record = json.loads((run_folder(config) / "attempts" / "001" / "attempt.json").read_text())
    assert record["verdict"] == "preempted"


@ON
def test_kill_9_of_the_launcher_leaves_nothing_behind(config: Path, on: list[str]) -> None:
    launcher = drive("wait", config, *on)
    wait_for(lambda: running(config) or launcher.poll() is not None, "the first step")
    everything = [child.pid for child in psutil.Process(launcher.pid).children(recursive=True)]
    assert set(rank_pids(config)) <= set(everything)
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not [pid for pid in everything if alive(pid)], "everything to be gone")
