"""`brt metrics-exporter`."""

import json
from pathlib import Path

import click

from launch.commands.arguments import LocalPath, json_option


@click.command("metrics-exporter")
@click.argument("runs", nargs=-1, required=True, type=LocalPath(file_okay=False))
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=9464, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0: any free one."
)
@json_option
def exporter(runs: tuple[Path, ...], address: str, port: int, as_json: bool) -> None:
    """Serve the latest metrics of RUNS to Prometheus until Ctrl-C.

    It only reads the runs' metrics.jsonl, so it does not touch the ranks.  By default only this machine can connect;
    use --address to change that.  --json prints the address as soon as it listens.
    """
    from brt_dist.run_directory import RunDirectory
    from launch.views.exporter import serving

    for run in runs:
        RunDirectory.existing(run)
    with serving(runs, address, port) as (bound, thread):
        url = f"http://{address}:{bound}/metrics"
        told = {"url": url, "port": bound, "runs": [str(run) for run in runs]}
        click.echo(json.dumps(told) if as_json else url, err=not as_json)
        thread.join()
