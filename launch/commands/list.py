"""`brt list`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from launch.commands.arguments import LocalPath, json_option

# Folders of a run, which contains no other runs.
_PASSED_OVER = ("checkpoints", "attempts", "tracking", "plots", "system", "submissions")


@click.command("list")
@click.argument("folder", type=LocalPath(file_okay=False, exists=True), default=".")
@click.option("--experiment", metavar="NAME", help="List the runs of this MLflow experiment instead.")
@click.option(
    "--mlflow",
    metavar="URI",
    help="Tracking server or store of the experiment.  [default: $MLFLOW_TRACKING_URI, or mlflow.db in FOLDER]",
)
@json_option
def list_(folder: Path, experiment: str | None, mlflow: str | None, as_json: bool) -> None:
    """List all runs in FOLDER and below it (by default here), the latest first: state, step, loss and speed.

    With --experiment or --mlflow, the runs that an MLflow experiment knows, from any machine:

    \b
      brt list --mlflow http://tracking:5000 --experiment books
    """
    if experiment is not None or mlflow is not None:
        from launch.tracking.listing import runs_of_experiment

        where, rows, others = runs_of_experiment(mlflow, experiment, folder)
    else:
        where, rows, others = {"folder": str(folder)}, [_row(run) for run in runs_below(folder)], 0
    rows.sort(key=lambda row: -row["time"])
    if as_json:
        click.echo(json.dumps({**where, "runs": rows, **({"others": others} if others else {})}))
        return
    if rows:
        _show(rows, None if "experiment" in where else folder)
    else:
        there = f"experiment {where['experiment']}" if "experiment" in where else f"{folder} or below it"
        click.echo(f"no run in {there}", err=True)
    if others:
        click.echo(f"{others} other runs of the experiment were not started by brt train", err=True)


def _show(rows: list[dict[str, Any]], folder: Path | None) -> None:
    from launch.views.tables import when
    from pipelines.tables import show, table

    cells = [
        (
            row["run"] if folder is None else os.path.relpath(row["run"], folder),
            row["state"],
            f"{row['step']}/{row['steps'] or '?'}",
            "-" if row["loss"] is None else f"{row['loss']:.4f}",
            "-" if row["bits_per_token"] is None else f"{row['bits_per_token']:.3f}",
            "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
            when(row["time"]),
        )
        for row in rows
    ]
    head = ("run", "state", "step", "loss", "held-out bits/token", "tokens/s", "last step")
    show(table(head, cells, right=head[2:6]))


def runs_below(folder: Path) -> Iterator[Path]:
    """The run directories in a folder and below it, by path; folders that cannot be read are skipped."""
    for place, names, files in os.walk(folder):
        is_run = "config.yaml" in files and ("attempts" in names or "submission.json" in files)
        names[:] = sorted(name for name in names if not name.startswith(".") and not (is_run and name in _PASSED_OVER))
        if is_run:
            yield Path(place)


def _row(run: Path) -> dict[str, Any]:
    from brt_dist.config.loading import load
    from brt_dist.errors import ConfigError
    from brt_dist.run_directory import RunDirectory
    from launch.run.attempt_record import read_last_attempt
    from launch.run.claim import launcher_of
    from launch.run.history import History
    from launch.views.summary import verdict_words

    history, last = History.read(run), read_last_attempt(run)
    try:
        steps = load(RunDirectory(run).config).config.run.steps
    except ConfigError:  # written by another version, or not by us
        steps = None
    state = (last.verdict if last else None) or history.state or "not started"
    if last is not None and last.is_running:
        state = "launcher_gone" if launcher_of(run, last.host) == "gone" else "running"
    step = history.latest_step()
    held_out = [history.evaluations[key] for key in sorted(history.evaluations) if key[1:] == ("validation", "carried")]
    return {
        "run": str(run),
        "state": verdict_words(state),
        "step": history.last_step,
        "steps": steps,
        "loss": step.loss if step else None,
        "bits_per_token": held_out[-1].bits_per_token if held_out else None,
        "tokens_per_second": step.tokens_per_second if step else None,
        "time": step.time if step else 0.0,
    }
