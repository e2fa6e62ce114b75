"""`brt report`."""

import json
from pathlib import Path

import click

from launch.commands.arguments import LocalPath, json_option


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=LocalPath(file_okay=False))
@click.option("--out", type=LocalPath(dir_okay=False), help="File to write.  [default: RUN/report.html]")
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a report of a run: one HTML file that needs no network.

    It shows curves, evaluations with memory carried and cleared, the attempts and why each ended, checkpoints, guard
    events, and the config with the origin of each value.  Given several runs, it compares their curves first and then
    shows each run.
    """
    from brt_dist.run_directory import RunDirectory
    from launch.report.page import write_report

    path = write_report(runs, out or RunDirectory(runs[0]).report)
    click.echo(json.dumps({"report": str(path)}) if as_json else str(path))
