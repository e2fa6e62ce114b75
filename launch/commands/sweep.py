"""`brt sweep`."""

import json

import click

from brt_dist.errors import ConfigError
from launch.commands.arguments import config_argument, json_option, split


@click.command()
@config_argument
@click.option(
    "--grid", "grid", multiple=True, metavar="KEY=A,B,...", help="A setting and its values; several: all combinations."
)
@click.option("--submit", is_flag=True, help="Give all runs to launch.backend at once, instead of training them here.")
@click.option("--dry-run", is_flag=True, help="Check all runs and name them; write and start nothing.")
@json_option
def sweep(settings: tuple[str, ...], grid: tuple[str, ...], submit: bool, dry_run: bool, as_json: bool) -> int:
    """Train CONFIG once for each combination of values, one run after another.

    \b
      brt sweep my.yaml --grid optimizer.learning_rate=0.001,0.0003 --grid model.mixers.recurrent.gate=fixed,lstm

    All combinations are checked before the first is started. run.directory is the folder of the sweep: each run has a
    folder in it, named by its values, and sweep.json and report.html (all curves in one page) lie beside them. In
    MLflow the runs are children of one run. The same command again goes on: runs that have finished are left alone,
    others are taken up where they were saved, and values may be added. A run that fails does not keep the others from
    being trained; Ctrl-C saves the run under way and ends the sweep.

    The exit code is 0 when all runs have finished, else that of the first that has not.
    """
    from rich.console import Console

    from launch.sweep.record import result_table
    from launch.sweep.run import sweep as run_sweep
    from pipelines.tables import show

    files, overrides = split(settings)
    if not files and not overrides:
        raise ConfigError("no config given; example: brt sweep my.yaml --grid optimizer.learning_rate=0.001,0.0003")
    done = run_sweep(files, overrides, grid, Console(stderr=True), submit=submit, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(done.to_json()))
    elif dry_run:
        click.echo("\n".join(f"would train {name}" for name in done.would_train))
    else:
        show(result_table(done.results))
        click.echo(f"\nsweep     {done.folder}\nreport    {done.report or '-'}")
    return done.exit_code
