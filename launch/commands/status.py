"""`brt status`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from launch.commands.arguments import json_option
from pipelines.console import console


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--watch", is_flag=True, help="Keep updating until the run ends; Ctrl-C stops only the display.")
@json_option
def status(run: Path, watch: bool, as_json: bool) -> None:
    """Show the state of the run in directory RUN: step, speed, evaluations, attempts, last checkpoint."""
    from launch.views.summary import summary

    found = describe(run)
    if watch:
        from launch.views.watch import watch as watch_run

        try:
            watch_run(run, found["steps"], console(), partial(_is_expected, run))
        except KeyboardInterrupt:
            return
        found = describe(run)
    click.echo(json.dumps(found) if as_json else summary(found))


def describe(run: Path) -> dict[str, Any]:
    """Return facts about a run, read from its files alone.

    Raises:
        ConfigError: the folder holds no run.
    """
    from dataclasses import asdict

    from brt_dist.config.loading import load
    from brt_dist.events import to_json
    from brt_dist.run_directory import RunDirectory
    from launch.run.attempt_record import AttemptRecord, read_attempts
    from launch.run.claim import launcher_of
    from launch.run.history import History
    from launch.supervision.verdict import verdict_of
    from launch.tracking.health import Health
    from launch.tracking.uri import page_command, page_link

    directory = RunDirectory.existing(run)
    config = load(directory.config).config
    history = History.read(run)
    last_step, saved = history.latest_step(), history.latest_checkpoint()
    records = read_attempts(run)
    last = records[-1] if records else AttemptRecord(0)
    verdict = last.verdict or "not started"
    if last.is_running:
        verdict = "launcher_gone" if launcher_of(run, last.host) == "gone" else "running"
    ended = verdict_of(last.to_json()) if last.end is not None else None
    plot = directory.loss_plot
    tracking = config.run.tracking
    return {
        "run": str(run),
        "verdict": verdict,
        "reason": f"attempt {len(records)}, step {history.last_step} of {config.run.steps}"
        + ("; run the same command again, or brt resume" if verdict == "launcher_gone" else ""),
        "failed_rank": ended.failed_rank if ended else None,
        "detail": ended.detail if ended else "",
        "step": history.last_step,
        "steps": config.run.steps,
        "last_step": to_json(last_step) if last_step else None,
        "evaluations": [to_json(history.evaluations[key]) for key in sorted(history.evaluations)],
        "checkpoint": saved.path if saved else None,
        "attempts": [record.to_json() for record in records],
        "plot": str(plot) if plot.is_file() else None,
        "submission": _submission(run),
        "mlflow": page_command(tracking, run) if tracking.enabled else None,
        "mlflow_page": page_link(tracking, run) if tracking.enabled else None,
        "tracking": asdict(health) if (health := Health.read(run)) else None,
    }


def _is_expected(run: Path, since: float) -> bool:
    """Whether the run was submitted after `since` and its job is queued or running."""
    from brt_dist.errors import PlatformError
    from launch.backends.submission import state
    from launch.run.submission import Submission

    try:
        submitted = Submission.read(run)
        if submitted is None or submitted.submitted < since:
            return False
        found = state(run)
    except PlatformError:
        return False
    return found is not None and found[1] in ("queued", "running")


def _submission(run: Path) -> dict[str, Any] | None:
    """The last submission and its state, which is `unknown` if the backend does not answer."""
    from dataclasses import asdict

    from brt_dist.errors import PlatformError
    from launch.backends.submission import state
    from launch.run.submission import Submission

    record = Submission.read(run)
    if record is None:
        return None
    try:
        found = state(run)
        return {**asdict(record), "state": found[1] if found else "unknown"}
    except PlatformError as error:
        return {**asdict(record), "state": "unknown", "problem": str(error)}
