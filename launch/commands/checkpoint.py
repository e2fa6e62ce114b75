"""`brt checkpoint`: list, show, verify and prune the checkpoints of a run.  Does not need torch."""

import json
from typing import Any

import click

from launch.commands.arguments import NearestGroup, json_option
from pipelines.console import console

_place = click.argument("run", metavar="RUN")


@click.group(cls=NearestGroup)
def checkpoint() -> None:
    """List, show, verify and prune the checkpoints of a run.

    RUN is a run directory, a folder or URL (s3://...) that holds checkpoints, or one checkpoint.
    """


@checkpoint.command("list")
@_place
@json_option
def list_(run: str, as_json: bool) -> None:
    """List checkpoints, newest last.

    "intact" checks the manifest and the sizes of the files; `brt checkpoint verify` also reads the files.
    """
    from brt_dist.checkpoint.places import find_place
    from brt_dist.checkpoint.report import row_of
    from launch.views.tables import checkpoint_table
    from pipelines.tables import show as show_table

    place = find_place(run)
    rows = [row_of(place.storage, name) for name in place.names()]
    others = place.storage.others()
    if as_json:
        click.echo(json.dumps({"place": str(place.storage), "checkpoints": rows, "others": others}))
    else:
        show_table(checkpoint_table(rows))
    for name in others:
        console().print(f"{name}: ignored; checkpoints are named like step_00000012", soft_wrap=True)


@checkpoint.command()
@_place
@click.argument("step", type=click.IntRange(0), required=False)
@json_option
def show(run: str, step: int | None, as_json: bool) -> None:
    """Show the contents of a checkpoint.

    Prints the state of the run and all tensors with their shapes, at STEP or from the newest checkpoint.
    """
    from brt_dist.checkpoint.places import answering, find_place
    from brt_dist.checkpoint.report import describe
    from brt_dist.checkpoint.verification import read_manifest
    from launch.views.tables import checkpoint_description
    from pipelines.tables import show as show_table

    place = find_place(run)
    name = place.names()[-1] if step is None else place.of_step(step)
    with answering(place.storage):
        found = describe(place.storage, name, read_manifest(place.storage, name))
    if as_json:
        click.echo(json.dumps(found))
        return
    facts, tensors = checkpoint_description(found)
    show_table(facts)
    click.echo()
    show_table(tensors)


@checkpoint.command()
@_place
@click.argument("steps", type=click.IntRange(0), nargs=-1, metavar="[STEP ...]")
@click.option(
    "--threads", type=click.IntRange(1), help="Files to read in parallel.  [default: cores of this machine, at most 8]"
)
@json_option
def verify(run: str, steps: tuple[int, ...], threads: int | None, as_json: bool) -> None:
    """Compare files with their digests.

    Reads every file of the checkpoints at STEP ..., by default of all.  Names damaged files; the exit code is then 12.
    """
    from brt_dist.checkpoint.places import find_place
    from brt_dist.checkpoint.report import verify_all
    from brt_dist.errors import CheckpointError

    place = find_place(run)
    names = [place.of_step(step) for step in steps] or place.names()
    with _bar() as bar:
        task = bar.add_task("verifying", total=None)
        found = verify_all(
            place.storage, names, lambda done, total: bar.update(task, completed=done, total=total), threads
        )
    problems = [problem for results in found.values() for problem in results]
    if as_json:
        rows = [{"checkpoint": name, "ok": not results, "problems": results} for name, results in found.items()]
        click.echo(json.dumps({"place": str(place.storage), "ok": not problems, "checkpoints": rows}))
    if problems:
        damaged = sum(bool(results) for results in found.values())
        raise CheckpointError(
            f"{damaged} of {len(found)} checkpoints are damaged:\n" + "\n".join(f"  {text}" for text in problems)
        )
    console().print(f"{place.storage}: {len(found)} checkpoints, all digests match", soft_wrap=True)


@checkpoint.command()
@_place
@click.option("--keep", type=click.IntRange(1), help="Keep this many of the newest.  [default: run.keep_checkpoints]")
@click.option("--every", type=click.IntRange(0), help="Keep multiples of this step.  [default: run.keep_every]")
@click.option(
    "--best", type=click.IntRange(0), help="Keep this many of the best on held-out data.  [default: run.keep_best]"
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@json_option
def prune(run: str, keep: int | None, every: int | None, best: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove checkpoints that need not be kept.

    Options that are not given default to the run's config.  The newest complete checkpoint is always kept.  Damaged
    checkpoints are named and kept too: inspect them and remove them by hand.
    """
    from brt_dist.checkpoint.places import answering, find_place
    from brt_dist.checkpoint.report import plan_pruning

    place = find_place(run)
    given = {"keep_checkpoints": keep, "keep_every": every, "keep_best": best}
    plan = plan_pruning(place, {key: value for key, value in given.items() if value is not None})
    if not dry_run:
        for name in plan.remove:
            with answering(place.storage):
                place.storage.remove(name)
    if as_json:
        answer: dict[str, Any] = {"place": str(place.storage), "dry_run": dry_run}
        click.echo(json.dumps(answer | {"removed": plan.remove, "kept": plan.keep, "damaged": plan.damaged}))
        return
    verb = "would be removed" if dry_run else "removed"
    for name in plan.remove:
        click.echo(f"{name}  {verb}")
    for name, problem in plan.damaged.items():
        click.echo(f"{name}  kept: {problem}")
    click.echo(f"{len(plan.remove)} {verb}, {len(plan.keep) + len(plan.damaged)} kept in {place.storage}")


def _bar() -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console(), transient=True)
