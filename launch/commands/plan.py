"""`brt plan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.commands.arguments import LocalPath, config_argument, json_option, quiet_libraries, split

if TYPE_CHECKING:
    from brt_dist.planning.layout_plan import LayoutPlan, Planner

_PER_STAGE = 4  # micro-batches drawn per stage; more would look the same


@click.command()
@config_argument
@click.option(
    "--gpus", type=click.IntRange(min=1), help="Total number of devices.  [default: as many as the layout has]"
)
@click.option(
    "--device", "device_name", metavar="NAME|FILE",
    help="h100, h200, a100, b200, mi300x, cpu (this machine), or a YAML file: with the keys of one of these, or from "
    "--calibrate.  With --calibrate: cpu or cuda.  [default: h100; with --calibrate: what this machine has]",
)  # fmt: skip
@click.option(
    "--nodes", type=click.IntRange(min=1), help="Number of nodes.  [default: nodes of the usual size for the device]"
)
@click.option("--network", type=click.FloatRange(min=0, min_open=True), help="Network speed of each device, in Gbit/s.")
@click.option("--price", type=click.FloatRange(min=0), help="Price of a device, in dollars per hour.")
@click.option("--search", "is_search", is_flag=True, help="Try all layouts, and plan the fastest that fits.")
@click.option(
    "--most", type=click.IntRange(min=1), default=10, show_default=True, help="How many layouts --search shows."
)
@click.option("--calibrate", "calibrates", is_flag=True, help="Measure this machine; takes a few minutes.")
@click.option(
    "--from", "runs", multiple=True, metavar="RUN", type=LocalPath(file_okay=False),
    help="With --calibrate: instead of measuring, correct the file by the times of this run; may be repeated.",
)  # fmt: skip
@click.option(
    "--out", type=LocalPath(dir_okay=False), default=Path("device.yaml"), show_default=True,
    help="File that --calibrate writes.",
)  # fmt: skip
@click.option("--timeline", type=LocalPath(dir_okay=False), help="Draw the pipeline's timeline as HTML.")
@json_option
def plan(
    settings: tuple[str, ...],
    gpus: int | None,
    device_name: str | None,
    nodes: int | None,
    network: float | None,
    price: float | None,
    is_search: bool,
    most: int,
    calibrates: bool,
    runs: tuple[Path, ...],
    out: Path,
    timeline: Path | None,
    as_json: bool,
) -> int:
    """Compute what training CONFIG needs before you pay for a device: memory, time, price.

    \b
      brt plan examples/scale_70b.yaml model.vocab_size=131072 --gpus 64 --search
      brt plan my.yaml --device a100 --nodes 4
      brt plan --calibrate --out here.yaml
      brt plan my.yaml --device here.yaml --json
      brt plan --calibrate --from runs/my --out here.yaml

    Memory is counted.  Time is estimated from a model of the host and the device, with rates from data sheets or
    --calibrate.  With --gpus, parallel.data changes so that the layout has that many ranks; --search tries all
    layouts.  The exit code is 13 (out of memory) if the plan does not fit.
    """
    from brt_dist.errors import ConfigError, ExitCode
    from brt_dist.planning.layout_plan import Planner
    from brt_dist.planning.search import search
    from launch.run.sizes import device_in, for_plan, on_devices
    from launch.views.plan import plan_text, search_text

    if calibrates or runs:
        return _calibrate(settings, device_name, out, runs, as_json)
    files, overrides = split(settings)
    if not files and not overrides:
        raise ConfigError("no config given; example: brt plan examples/scale_7b.yaml model.vocab_size=32000")
    config = for_plan(files, overrides)
    world = gpus or config.parallel.world_size
    device = device_in(device_name or "h100", world, nodes, network, price)
    planner = Planner(config, device)
    found = None
    if is_search:
        found = search(planner, world)
        candidates = found.plans or found.oversize
        if not candidates:
            raise ConfigError(
                f"no layout of {world} devices suits data.streams={config.data.streams} and the sizes of the model; "
                "nearest: a number of devices that divides data.streams"
            )
        chosen = candidates[0]
    else:
        chosen = planner.plan(on_devices(config, world, device))
    if timeline is not None:
        _write_timeline(planner, chosen, timeline)
    if as_json:
        told = {**chosen.to_json(), "parameters": planner.parameters, "flops_per_token": planner.flops_per_token}
        told["timeline"] = str(timeline) if timeline else None
        if found is not None:
            told["search"] = {
                "fit": len(found.plans),
                "oversize": len(found.oversize),
                "plans": [{**one.to_json(), "why": found.why_not_first(one)} for one in found.plans[:most]],
            }
        click.echo(json.dumps(told))
    else:
        if found is not None:
            click.echo(search_text(found, most) + "\n")
        click.echo(plan_text(planner, chosen))
        if timeline is not None:
            click.echo(f"\ntimeline  {timeline}")
    if chosen.problem is not None:
        click.echo(f"does not fit: {chosen.problem}", err=True)
    return 0 if chosen.problem is None else int(ExitCode.OUT_OF_MEMORY)


def _calibrate(
    settings: tuple[str, ...], device_name: str | None, out: Path, runs: tuple[Path, ...], as_json: bool
) -> int:
    """Measure this machine, or correct a calibration from runs, and write the file."""
    from brt_dist.errors import ConfigError
    from brt_dist.planning.calibration.machine import calibrate, write_calibration
    from launch.views.calibration import calibration_text, corrected, warnings

    if settings:
        raise ConfigError(f"--calibrate takes no config: {settings[0]}")
    if runs:
        found, words = corrected(out, runs)
    else:
        kind = device_name or _kind_here()
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"--calibrate measures this machine: --device cpu or cuda, and not {kind!r}")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        found = calibrate(kind, out.absolute().parent, lambda now: click.echo(now, err=True))
        words = calibration_text(found)
    write_calibration(out, found)
    for warning in warnings(found):
        click.echo(warning, err=True)
    click.echo(
        json.dumps({"file": str(out), **found.model_dump(mode="json")}) if as_json else f"{words}\n\nfile  {out}"
    )
    return 0


def _kind_here() -> str:
    from launch.doctor.node import gpus

    return "cuda" if gpus() else "cpu"


def _write_timeline(planner: "Planner", chosen: "LayoutPlan", path: Path) -> None:
    """Simulate the first micro-batches of a step and draw them; imports DeepSpeed for its schedule."""
    from brt_dist.files import write_atomic
    from brt_dist.parallel.device import choose
    from brt_dist.planning.simulator.step import simulate_step
    from brt_dist.planning.step_time import stage_seconds
    from launch.views.plan import layout
    from launch.views.timeline import timeline_html

    quiet_libraries()
    choose("cpu", 0)  # before importing DeepSpeed
    stages = stage_seconds(planner.sizes, chosen.parallel, chosen.device, chosen.stages)
    count = planner.sizes.on(chosen.parallel).micro_batches
    drawn = min(count, _PER_STAGE * len(stages))
    of = f"{drawn} of {count} micro-batches" if drawn < count else f"{count} micro-batches"
    title = f"{planner.config.run.name} on {chosen.parallel.world_size} x {chosen.device.name}, {layout(chosen)}: {of}"
    write_atomic(path, timeline_html(simulate_step(stages, drawn), title))
