"""`brt submit`, `brt resume`, `brt stop` and `brt logs`."""

import json
import time
from pathlib import Path
from typing import Any

import click

from brt_dist.errors import ConfigError
from brt_dist.kinds import BACKENDS
from launch.commands.arguments import LocalPath, config_argument, json_option, split

run_argument = click.argument("run", type=LocalPath(file_okay=False))
_OPTIONS = {
    "backend": "launch.backend",
    "nodes": "launch.nodes",
    "gpus_per_node": "launch.gpus_per_node",
    "time": "launch.time_limit",
    "partition": "launch.slurm.partition",
}


def placement(command: Any) -> Any:
    """Add the options that set keys of `launch`."""
    choices = click.Choice(list(BACKENDS))
    for option in (
        click.option("--dry-run", is_flag=True, help="Print exactly what would be submitted, and do nothing."),
        click.option("--partition", help="Sets launch.slurm.partition."),
        click.option("--time", metavar="H:MM:SS", help="Sets launch.time_limit."),
        click.option("--gpus-per-node", type=click.IntRange(min=0), help="Sets launch.gpus_per_node."),
        click.option("--nodes", type=click.IntRange(min=1), help="Sets launch.nodes."),
        click.option("--backend", type=choices, help="Sets launch.backend."),
    ):
        command = option(command)
    return command


@click.command()
@config_argument
@placement
@json_option
def submit(settings: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Submit the run that CONFIG describes to a backend, and return at once.

    \b
      brt submit my.yaml                                  this machine, in the background
      brt submit my.yaml --backend slurm --nodes 4 --time 24:00:00 --partition gpu
      brt submit my.yaml --backend kubernetes --dry-run

    Each option sets a key of launch and overrides the config.  Pass the run directory to brt status, brt logs,
    brt stop and brt resume.
    """
    from launch.backends.submission import submit as give

    files, overrides = split(settings)
    if not files and not overrides:
        raise ConfigError("no config given; example: brt submit my.yaml --backend slurm --nodes 2")
    _tell(give(files, [*overrides, *_overrides(options)], dry_run=dry_run), as_json)


@click.command()
@run_argument
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--allow",
    multiple=True,
    metavar="KEY",
    help="A key whose value may differ from the run's (run.allow); may be repeated.",
)
@placement
@json_option
def resume(
    run: Path, overrides: tuple[str, ...], allow: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Submit the run in directory RUN again, to any backend; it resumes from its newest complete checkpoint.

    Changes that would make it a different run (tokenizer, data, streams, seed, ...) are refused, all in one list.

    \b
      brt resume runs/a run.steps=20000 --nodes 4
      brt resume runs/a data.streams=64 --allow data.streams
    """
    from launch.backends.submission import resume as submit_again

    done = submit_again(run, [*overrides, *_overrides(options)], allow=allow, dry_run=dry_run)
    if not as_json:
        for text in done.passed_over:
            click.echo(f"skipped: {text}", err=True)
        click.echo(
            f"resuming from {done.checkpoint}" if done.checkpoint else "no checkpoint: starting from scratch", err=True
        )
    _tell(done, as_json)


@click.command()
@run_argument
@json_option
def stop(run: Path, as_json: bool) -> None:
    """Ask the submitted run in directory RUN to save and stop; brt resume resumes it."""
    from launch.backends.submission import stop as ask

    done = ask(run)
    click.echo(json.dumps({"run": str(run), "done": done}) if as_json else done)


@click.command()
@run_argument
@click.option("--rank", type=click.IntRange(min=0), help="Print the log of this rank instead of the launcher's.")
@click.option("--attempt", type=click.IntRange(min=1), help="Attempt to print.  [default: the last]")
@click.option("--follow", is_flag=True, help="Keep printing until the job ends.")
@json_option
def logs(run: Path, rank: int | None, attempt: int | None, follow: bool, as_json: bool) -> None:
    """Print the launcher's log of the last submission of RUN, or the log of a rank."""
    from launch.backends.submission import log, state

    if as_json:
        click.echo(json.dumps({"run": str(run), "log": "".join(log(run, rank, attempt))}))
        return
    shown = 0
    while True:
        found = state(run) if follow else None
        text = "".join(log(run, rank, attempt))
        click.echo(text[shown:], nl=False)
        shown = len(text)
        if found is None or found[1] not in ("queued", "running"):
            return
        time.sleep(1.0)


def _overrides(options: dict[str, Any]) -> list[str]:
    return [f"{_OPTIONS[name]}={json.dumps(value)}" for name, value in options.items() if value is not None]


def _tell(done: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done.to_json()))
    elif done.record is None:
        click.echo(done.text, nl=False)
        if done.environment:
            given = " ".join(f"{name}={value}" for name, value in done.environment.items())
            click.echo(f"every rank gets {given} (launch.environment, launch.default_environment)", err=True)
    else:
        click.echo(f"{done.record.backend} job {done.record.job}\nrun directory {done.run}")
