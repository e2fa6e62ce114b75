"""`brt eval`."""

import json
from pathlib import Path

import click

from brt_dist.errors import ConfigError
from brt_dist.run_directory import RunDirectory
from launch.commands.arguments import LocalPath, device_option, json_option, quiet_libraries, tokenizer_option
from launch.tracking.additions import add_to_run
from launch.views.evaluated import events_of, show_evaluated


@click.command("eval")
@click.argument("source", metavar="SOURCE")
@click.argument("layout", nargs=-1, metavar="[parallel.KEY=VALUE ...] [launch.KEY=VALUE ...]")
@click.option("--data", "places", multiple=True, required=True, metavar="DATA", help="What to read; may be repeated.")
@click.option("--step", type=click.IntRange(0), help="Step of the checkpoint.  [default: the newest]")
@click.option("--documents", type=click.IntRange(1), help="Read only this many documents, from the beginning.")
@click.option("--segment", type=click.IntRange(1), help="Tokens read at a time, a multiple of the window.")
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True, help="Documents read at a time.")
@click.option("--carried-only", is_flag=True, help="Skip the second pass, in which memory is cleared at every segment.")
@click.option(
    "--parts",
    is_flag=True,
    help="Also clear only the state, and only the cache: what each is worth; and look into layers with a state.",
)
@click.option("--track", is_flag=True, help="Add the result to the run SOURCE: its events, report and MLflow run.")
@click.option("--plot", type=LocalPath(), help="Draw bits/token by position in the document (PNG).")
@click.option("--ray-address", metavar="HOST:PORT", help="Ray cluster with the nodes of launch.nodes.")
@tokenizer_option
@device_option
@json_option
def evaluate(
    source: str,
    layout: tuple[str, ...],
    places: tuple[str, ...],
    step: int | None,
    documents: int | None,
    segment: int | None,
    streams: int,
    carried_only: bool,
    parts: bool,
    track: bool,
    plot: Path | None,
    ray_address: str | None,
    tokenizer: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the model of SOURCE on whole documents.

    SOURCE is a run directory, a checkpoint, a folder or URL (s3://...) of checkpoints, or an export.  DATA is a dataset
    of `brt data build`, or text that is tokenized on the fly: a file, or a folder of files (.txt, .jsonl and all that
    `brt data build` reads; each file or record is a document).

    \b
      brt eval runs/books --data data/validation --plot positions.png
      brt eval exported --data chapter1.txt --data notes.jsonl --json
      brt eval runs/large --data data/validation parallel.tensor=4 parallel.data=2

    Every token of a document but its first is predicted, with memory carried from its beginning.  A second pass clears
    memory at the start of every segment: the difference is what the carried memory is worth.

    A model that is too large for one device, or takes too long on it, is spread over those of this machine with
    parallel.* settings, as in a config; the result is the same.  With --ray-address and launch.nodes it is spread over
    machines, which share the working folder:

    \b
      brt eval runs/large --data data/validation parallel.data=16 launch.nodes=2 --ray-address 10.0.0.1:6379
    """
    quiet_libraries()
    from launch.commands.evaluating import Measured, Wanted, in_layout, in_this_process

    wrong = [setting for setting in layout if not setting.startswith(("parallel.", "launch.")) or "=" not in setting]
    if wrong:
        raise ConfigError(f"{wrong[0]}: only settings of the layout can be given here, as in parallel.tensor=2")
    several = [setting for setting in layout if setting.startswith("launch.nodes=") and setting != "launch.nodes=1"]
    if several and ray_address is None:
        raise ConfigError(f"{several[0]}: the nodes are those of a Ray cluster; give its address with --ray-address")
    if track:
        RunDirectory.existing(Path(source))
    wanted = Wanted(
        source, step, tokenizer, device, places, documents, segment, streams, not carried_only, parts, ray_address
    )
    measured: Measured = in_layout(wanted, layout) if layout or ray_address else in_this_process(wanted)
    facts, found = measured.facts, measured.results
    if plot is not None:
        from launch.views.position_plot import plot_positions

        plot_positions(plot, {one.name: {m: s.positions for m, s in one.scores.items()} for one in found})
    if track:
        add_to_run(Path(source), events_of(found, int(facts["step"] or 0)))
    if as_json:
        click.echo(json.dumps(facts | {"plot": plot and str(plot), "results": [one.to_json() for one in found]}))
        return
    show_evaluated(facts, found)
    if plot is not None:
        click.echo(f"\nplot: {plot}")
