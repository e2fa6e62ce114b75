"""`brt report`."""

import json
from pathlib import Path

import click

from launch.commands.arguments import json_option


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: RUN/report.html]"
)
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write what happened in a run as one HTML page, which needs nothing else to be looked at.

    Curves, evaluations with memory carried and cleared, attempts and why each ended, checkpoints, what the guards told,
    and the config with the origin of each value.  Several runs: their curves side by side, then each.
    """
    from brt_dist.run_directory import RunDirectory
    from launch.report.page import write_report

    path = write_report(runs, out or RunDirectory(runs[0]).report)
    click.echo(json.dumps({"report": str(path)}) if as_json else str(path))
