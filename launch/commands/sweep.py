"""`brt sweep`."""

import json
from pathlib import Path

import click
from click.core import ParameterSource

from brt_dist.errors import ConfigError
from launch.commands.arguments import LocalPath, config_argument, json_option, split
from pipelines.console import console


@click.command()
@config_argument
@click.option("--grid", "grid", multiple=True, metavar="KEY=A,B,...", help="A key and its values; may be repeated.")
@click.option(
    "--random",
    "ranges",
    multiple=True,
    metavar="KEY=LOW..HIGH",
    help="A key, and the range or the values to draw from.",
)
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Runs that --random draws."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of --random.")
@click.option(
    "--list",
    "listed",
    metavar="FILE",
    type=LocalPath(),
    help="A file with one run per line.",
)
@click.option(
    "--submit", is_flag=True, help="Submit all runs to launch.backend at once, instead of training them here."
)
@click.option("--dry-run", is_flag=True, help="Check and list all runs; write and start nothing.")
@json_option
@click.pass_context
def sweep(
    context: click.Context,
    settings: tuple[str, ...],
    grid: tuple[str, ...],
    ranges: tuple[str, ...],
    count: int,
    seed: int,
    listed: Path | None,
    submit: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train CONFIG once per combination of the --grid values, one run after another.

    \b
      brt sweep my.yaml --grid optimizer.learning_rate=0.001,0.0003 --grid model.mixers.recurrent.gate=fixed,lstm
      brt sweep my.yaml --random optimizer.learning_rate=0.0001..0.01 --random model.dropout=0,0.1 --count 20
      brt sweep my.yaml --list runs.txt

    --random draws --count runs, on a logarithmic scale where a range spans a factor of 10 or more; the same seed draws
    the same runs, and a larger count adds to them.  A line of --list holds the settings of a run: KEY=VALUE KEY=VALUE.

    All combinations are checked before the first one starts.  run.directory is the folder of the sweep: it holds one
    folder per run, named after its values, plus sweep.json and report.html, which compares all runs.  In MLflow the
    runs are children of one parent run.

    Run the same command again to resume the sweep: finished runs are left alone, the others resume from their
    last checkpoint, and you may add values.  If a run fails, the sweep continues with the next one; Ctrl-C saves the
    current run and stops the sweep.

    The exit code is 0 if all runs finished, else the exit code of the first run that did not.
    """
    from launch.sweep.grid import EXAMPLES, axes
    from launch.sweep.grid import points as points_of
    from launch.sweep.record import result_table
    from launch.sweep.run import sweep as run_sweep
    from launch.sweep.space import listed_points, random_points
    from pipelines.tables import show

    files, overrides = split(settings)
    if not files and not overrides:
        raise ConfigError("no config given; example: brt sweep my.yaml --grid optimizer.learning_rate=0.001,0.0003")
    if sum(map(bool, (grid, ranges, listed))) != 1:
        raise ConfigError(f"give one of --grid, --random and --list; example: {EXAMPLES['--grid']}")
    drawing = [name for name in ("count", "seed") if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if drawing and not ranges:
        raise ConfigError(f"--{drawing[0]} belongs to --random; leave it out")
    if ranges:
        points = random_points(ranges, count, seed)
    else:
        points = listed_points(listed) if listed else points_of(axes(grid))
    done = run_sweep(files, overrides, points, console(), submit=submit, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(done.to_json()))
    elif dry_run:
        click.echo("\n".join(f"would train {name}" for name in done.would_train))
    else:
        show(result_table(done.results))
        click.echo(f"\nsweep     {done.folder}\nreport    {done.report or '-'}")
    return done.exit_code
