"""`brt status`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from brt_dist.errors import ExitCode
from launch.commands.arguments import LocalPath, json_option
from pipelines.console import console

_GONE = ("launcher_gone", "launcher_failed")


@click.command()
@click.argument("run", type=LocalPath(file_okay=False))
@click.option(
    "--watch", is_flag=True, help="Keep updating until the run ends; Ctrl-C stops watching; the run continues."
)
@json_option
def status(run: Path, watch: bool, as_json: bool) -> int:
    """Show the state of the run in directory RUN: step, speed, evaluations, attempts, last checkpoint.

    The exit code is 16 if its launcher is gone without having ended the run, else 0.
    """
    from launch.views.summary import summary

    found = describe(run)
    if watch:
        from brt_dist.config.loading import load
        from brt_dist.run_directory import RunDirectory
        from launch.views.watch import watch as watch_run

        try:
            watch_run(run, load(RunDirectory(run).config).config.run, console(), partial(_is_expected, run))
        except KeyboardInterrupt:
            return 0
        found = describe(run)
    click.echo(json.dumps(found) if as_json else summary(found))
    return int(ExitCode.LOST_NODE) if found["verdict"] in _GONE else 0


def describe(run: Path) -> dict[str, Any]:
    """Return facts about a run, read only from its files.

    Raises:
        ConfigError: the folder holds no run.
    """
    from dataclasses import asdict

    from brt_dist.config.loading import load
    from brt_dist.events import to_json
    from brt_dist.run_directory import RunDirectory
    from launch.run.attempt_record import AttemptRecord, read_attempts
    from launch.run.claim import is_claimed, launcher_of
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
    submission = _submission(run)
    verdict, advice = last.verdict or history.state or "not started", ""
    if last.start is None and verdict == "running":
        advice = "; started without a launcher, so nothing would notice if it was killed"
    if last.is_running and launcher_of(run, last.host) == "gone":
        verdict, advice = "launcher_gone", "; run the same command again, or brt resume"
    elif last.is_running:
        verdict = "running"
    elif submission is not None and submission["submitted"] > (last.end or 0.0):  # this job has not started an attempt
        ended = submission["state"] == "ended" or (submission["backend"] == "local" and not is_claimed(run))
        verdict = "launcher_failed" if ended and submission["state"] != "running" else "starting"
        if verdict == "launcher_failed" and _was_taken_out(run, submission):
            verdict, advice = "not started", "; its job was removed from the queue"
        elif verdict == "launcher_failed":
            advice = f"; {_last_line(run, submission)}"
    ended = verdict_of(last.to_json()) if last.end is not None else None
    plot = directory.loss_plot
    tracking = config.run.tracking
    return {
        "run": str(run),
        "verdict": verdict,
        "reason": f"attempt {len(records)}, step {history.last_step} of {config.run.steps}{advice}",
        "failed_rank": ended.failed_rank if ended else None,
        "detail": ended.detail if ended else "",
        "phase": _phase(directory, last.attempt) if verdict == "running" else None,
        "start": dict(history.start.seconds) if history.start else None,
        "step": history.last_step,
        "steps": config.run.steps,
        "last_step": to_json(last_step) if last_step else None,
        "evaluations": [to_json(history.evaluations[key]) for key in sorted(history.evaluations)],
        "checkpoint": saved.path if saved else None,
        "attempts": [record.to_json() for record in records],
        "plot": str(plot) if plot.is_file() else None,
        "submission": submission,
        "mlflow": page_command(tracking, run) if tracking.enabled else None,
        "mlflow_page": page_link(tracking, run) if tracking.enabled else None,
        "tracking": asdict(health) if (health := Health.read(run)) else None,
    }


def _phase(directory: Any, attempt: int) -> str | None:
    """What the ranks of an attempt do now: `evaluating (validation, memory carried, segment 3 of at most 60)`."""
    from brt_dist.reading import read_json

    try:
        beat = read_json(directory.attempt(attempt).heartbeat)
        phase, detail = str(beat["phase"]), beat.get("detail")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return f"{phase} ({detail})" if detail else phase


def _was_taken_out(run: Path, submission: dict[str, Any]) -> bool:
    """Whether `brt stop` ended the job before it wrote anything."""
    from brt_dist.run_directory import RunDirectory

    directory = RunDirectory(run)
    log = directory.submission_log(submission["number"])
    return directory.stop_request.exists() and not (log.is_file() and log.stat().st_size)


def _last_line(run: Path, submission: dict[str, Any]) -> str:
    """The last line that the launcher of a submission wrote, or where to look."""
    from brt_dist.errors import PlatformError
    from launch.backends.submission import log

    try:
        lines = [line.strip() for line in "".join(log(run)).splitlines() if line.strip()]
    except (PlatformError, OSError):
        lines = []
    return lines[-1] if lines else f"it has written nothing; ask {submission['backend']} about job {submission['job']}"


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
