"""`brt metrics-exporter`."""

from pathlib import Path

import click


@click.command("metrics-exporter")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=9464, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0: any free one."
)
def exporter(runs: tuple[Path, ...], address: str, port: int) -> None:
    """Serve the latest metrics of RUNS to Prometheus until Ctrl-C.

    It only reads the runs' metrics.jsonl, so it does not touch the ranks.  By default only this machine can connect;
    use --address to change that.
    """
    from launch.views.exporter import serving

    with serving(runs, address, port) as (bound, thread):
        click.echo(f"http://{address}:{bound}/metrics", err=True)
        thread.join()
