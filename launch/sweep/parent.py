"""The parent run of a sweep in MLflow: `python -m launch.sweep.parent SWEEP` sends the state of its runs.

It is a process of its own so that the launcher never imports mlflow or waits for a hanging server.  Runs create their
parent themselves if they are first.
"""

import json
import subprocess
import sys
from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.config.schema import TrackingConfig
from brt_dist.errors import BrtError, ExitCode
from brt_dist.run_directory import RunDirectory
from launch.run.python import module_command
from launch.run.redact import redact
from launch.sweep.record import Result, Sweep, best
from launch.tracking.client import connect, experiment_id, find_or_make, refusal, sweep_name
from launch.tracking.uri import tracking_uri

_PATIENCE_SECONDS = 60.0
_STOPPED = ("preempted", "interrupted", "not started")


def send_apart(sweep: Path) -> str | None:
    """Send it from another process, for at most a minute; returns what went wrong, if anything."""
    command = module_command("launch.sweep.parent", str(sweep))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PATIENCE_SECONDS:g} s"
    return None if done.returncode == 0 else redact(done.stderr.strip().splitlines()[-1] if done.stderr else "")


def send(folder: Path) -> None:
    """Update the parent run; raises whatever MLflow raises."""
    sweep = Sweep.read(folder)
    results = sweep.results()
    tracking, uri = _tracking(results)
    client = connect(uri)
    experiment = experiment_id(client, tracking.experiment, uri)
    run = find_or_make(client, experiment, sweep.identity, sweep_name(sweep.identity))
    client.update_run(run, status="RUNNING")
    client.set_tag(run, "grid", redact(json.dumps(_grid(results))))
    client.set_tag(run, "brt.sweep_directory", str(folder))
    if (top := best(results)) is not None:
        client.set_tag(run, "best", top.run.name)
        client.log_metric(run, "best_bits_per_token", top.bits_per_token or 0.0)
    rows = [result.to_json() for result in results]
    names = ["run", "verdict", "step", "loss", "bits_per_token", "settings"]
    table = {"columns": names, "data": [[row[name] for name in names] for row in rows]}
    client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": "results.json", "type": "table"}]))
    client.log_text(run, redact(json.dumps(table)), "results.json")
    status = _status(results)
    client.update_run(run, status=status) if status == "RUNNING" else client.set_terminated(run, status=status)


def _status(results: list[Result]) -> str:
    """MLflow's status for all runs together; RUNNING while any of them runs."""
    verdicts = {result.verdict for result in results}
    if verdicts == {"finished"}:
        return "FINISHED"
    if "running" in verdicts:
        return "RUNNING"
    return "KILLED" if verdicts & set(_STOPPED) else "FAILED"


def _grid(results: list[Result]) -> dict[str, list[str]]:
    keys = list(dict.fromkeys(key for result in results for key in result.settings))
    return {key: list(dict.fromkeys(r.settings[key] for r in results if key in r.settings)) for key in keys}


def _tracking(results: list[Result]) -> tuple[TrackingConfig, str]:
    """How and where the runs of the sweep are tracked; the same for all of them."""
    for result in results:
        if RunDirectory(result.run).is_run:
            tracking = load(RunDirectory(result.run).config).config.run.tracking
            return tracking, tracking_uri(tracking, result.run)
    raise BrtError("no run of the sweep has started")


if __name__ == "__main__":
    try:
        send(Path(sys.argv[1]))
    except Exception as error:  # whatever a server, a network or MLflow may raise
        print(redact(refusal(error) or f"{type(error).__name__}: {error}"), file=sys.stderr)
        sys.exit(int(ExitCode.ENVIRONMENT))
