"""`brt train`."""

import json

import click

from brt_dist.errors import ConfigError
from launch.commands.arguments import config_argument, json_option, split
from pipelines.console import console


@click.command()
@config_argument
@click.option("--ray-address", metavar="HOST:PORT", help="Ray cluster to join, for this command only.")
@json_option
def train(settings: tuple[str, ...], ray_address: str | None, as_json: bool) -> int:
    """Train the model that CONFIG describes; key=value overrides a key of it.

    \b
      brt train examples/quickstart.yaml
      brt train my.yaml run.steps=2000 parallel.data=2

    Everything is written to run.directory.  Run the same command again to resume from the last checkpoint; you may
    then change the layout (parallel), run.steps, the intervals in run, run.tracking and launch.

    Ctrl-C saves and stops; a second one stops at once.  The exit code says why training ended: 0 finished, 10 bad
    config, 11 bad data, 12 bad checkpoint, 13 out of memory, 14 diverged, 15 hung, 16 a process or node was lost,
    17 stopped and saved, 18 environment, 130 stopped without saving, 1 a bug.

    One machine needs no Ray, unless its datasets are remote; launch.ray_address names a cluster to join.  The ranks
    also run without the launcher, in any directory that holds the config.yaml that `brt train` writes:

    \b
      torchrun --nproc-per-node 2 -m brt_dist.worker RUN
    """
    import psutil

    from launch.train import train as run_training

    files, overrides = split(settings)
    if not files and not overrides:
        raise ConfigError("no config given; example: brt train examples/quickstart.yaml run.steps=100")
    outcome = run_training(files, overrides, console(), ray_address=ray_address, began=psutil.Process().create_time())
    if as_json:
        click.echo(json.dumps(outcome.to_json()))
    else:
        from launch.views.summary import summary

        click.echo(summary(outcome.to_json()), err=outcome.verdict.exit_code != 0)
    return int(outcome.verdict.exit_code)
