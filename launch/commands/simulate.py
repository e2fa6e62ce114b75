"""`brt simulate`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brt_dist.errors import ConfigError, PlatformError
from launch.commands.arguments import LocalPath, config_argument, json_option, quiet_libraries, split

if TYPE_CHECKING:
    from brt_dist.config.schema import Config
    from brt_dist.planning.scaling import Kept, Point
    from brt_dist.planning.simulator.failure_rates import FailureRate
    from brt_dist.planning.simulator.step import Step

_GB = 1e9
_MINUTES = 24 * 60
_MOST_PASSES = 64 * 1024  # simulated micro-batches times stages; other data parallel ranks behave the same


@click.command()
@config_argument
@click.option(
    "--device", "device_name", default="h100", show_default=True, metavar="NAME|FILE", help="As for `brt plan`."
)
@click.option("--efficiency", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak that matrix "
              "products reach.  [default: the device's]")  # fmt: skip
@click.option(
    "--jitter", type=click.FloatRange(0), default=0.0, help="Relative deviation of each forward and backward pass."
)
@click.option("--straggler", "stragglers", metavar="STAGE:FACTOR", multiple=True, help="Slow a stage of one data "
              "parallel rank by FACTOR; may be repeated.")  # fmt: skip
@click.option("--slow-link", "slow_links", metavar="STAGE:FACTOR", multiple=True, help="Slow the link from STAGE to "
              "the next, on one data parallel rank, by FACTOR; may be repeated.")  # fmt: skip
@click.option("--seed", default=0, help="Seed of the jitter.")
@click.option("--failures", default="llama3", show_default=True, metavar="llama3|opt|rsc1|rsc2|RATE", help="Failures "
              "per GPU and hour: a number, or the name of a published run.")  # fmt: skip
@click.option("--restart", type=click.FloatRange(0), default=300.0, show_default=True, help="Seconds from a failure "
              "until training continues.")  # fmt: skip
@click.option("--interval", type=click.FloatRange(0, min_open=True), help="Seconds between saves.  [default: the best]")
@click.option(
    "--to-storage",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="GB/s at which a node writes to storage.",
)
@click.option("--timeline", type=LocalPath(dir_okay=False), help="Draw the step: FILE.html, or its "
              "intervals: FILE.json.")  # fmt: skip
@click.option("--plot", type=LocalPath(dir_okay=False), help="Draw scaling and goodput (PNG).")
@json_option
def simulate(
    settings: tuple[str, ...],
    device_name: str,
    efficiency: float | None,
    jitter: float,
    stragglers: tuple[str, ...],
    slow_links: tuple[str, ...],
    seed: int,
    failures: str,
    restart: float,
    interval: float | None,
    to_storage: float,
    timeline: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simulate a config on GPUs that you do not need to have: a step, its scaling, and the cost of failures.

    \b
      brt simulate examples/scale_70b.yaml model.vocab_size=131072 --timeline step.html --plot scaling.png
      brt simulate my.yaml --straggler 3:1.5 --jitter 0.05
      brt simulate my.yaml --failures 2e-5 --restart 600 --json

    The step executes what DeepSpeed's engine would, instruction by instruction; each takes as long as `brt plan` says.
    Scaling adds data parallel ranks to the layout of the config, up to 16,384 GPUs, with the same number of streams
    (strong) or with proportionally more (weak).  docs/scaling.md compares the simulator with published runs.
    """
    from brt_dist.parallel.device import choose
    from brt_dist.planning.scaling import curve, goodputs, saving_of, scaled, sizes_of, step_of
    from brt_dist.planning.simulator.disturbance import Disturbance
    from launch.run.sizes import device_in, for_plan, on_devices

    quiet_libraries()
    choose("cpu", 0)  # before importing DeepSpeed, whose schedule we read
    if not settings:
        raise ConfigError("no config given; example: brt simulate examples/scale_7b.yaml model.vocab_size=32000")
    config = for_plan(*split(settings))
    gpus = device_in(device_name, config.parallel.world_size)
    if efficiency is not None:
        gpus = gpus.model_copy(update={"matmul_efficiency": efficiency})
    on_devices(config, config.parallel.world_size, gpus)  # checks the rules
    disturbance = Disturbance(
        jitter, seed, _places(stragglers, config, "--straggler"), _places(slow_links, config, "--slow-link", 1)
    )
    is_disturbed = bool(jitter or disturbance.places)
    most = max(_MOST_PASSES // (config.micro_batches * config.parallel.pipeline), 1)
    replicas = min(config.parallel.data, most) if is_disturbed else 1
    step = step_of(config, gpus, replicas, disturbance)
    curves = {"strong": curve(config, gpus, "strong"), "weak": curve(config, gpus, "weak")}
    sizes = {size: one for size in sizes_of(config) if (one := scaled(config, size, "weak")) is not None}
    rate = _rate(failures)
    savings = [(size, saving_of(one, gpus, to_storage * _GB, restart)) for size, one in sizes.items()]
    kept = goodputs(config, rate, savings, interval)
    title = f"{config.run.name or 'a step'} on {config.parallel.world_size:,} {gpus.name}"
    if timeline is not None:
        _write_timeline(timeline, step, title)
    if plot is not None:
        from launch.views.simulation_plot import plot_simulation

        plot_simulation(plot, curves, kept, f"{title}: simulated")
    if as_json:
        click.echo(json.dumps(_found(config, step, curves, kept, rate)))
    else:
        _show(config, step, curves, kept, rate, title)


def _places(given: Sequence[str], config: "Config", option: str, links: int = 0) -> dict[tuple[int, int], float]:
    """Parse `STAGE:FACTOR` into places on data parallel rank 0.

    Args:
        links: 1 if the option names links, which are one fewer than the stages.
    """
    stages = config.parallel.pipeline - links
    found = {}
    for text in given:
        stage, colon, factor = text.partition(":")
        try:
            place, times = int(stage), float(factor)
        except ValueError:
            raise ConfigError(f"{option} {text} is not STAGE:FACTOR; nearest: {option} 0:1.5") from None
        if not (colon and 0 <= place < stages and 0 < times < math.inf):
            raise ConfigError(
                f"{option} {text}: parallel.pipeline={config.parallel.pipeline} has "
                + (f"stages 0 to {stages - 1} there, and FACTOR must be positive" if stages else "no links")
            )
        found[0, place] = times
    return found


def _rate(text: str) -> "FailureRate":
    from brt_dist.planning.simulator.failure_rates import RATES, FailureRate

    if text in RATES:
        return RATES[text]
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise ConfigError(f"--failures {text} is neither a number nor {', '.join(RATES)}; nearest: --failures llama3")
    return FailureRate(rate, "given with --failures")


def _write_timeline(path: Path, step: "Step", title: str) -> None:
    from brt_dist.files import write_atomic
    from launch.views.timeline import timeline_html

    if path.suffix == ".json":
        text = json.dumps([asdict(one) for one in step.intervals]) + "\n"
    else:
        text = timeline_html(step, title)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror or error}") from None


def _found(
    config: "Config", step: "Step", curves: "Mapping[str, Sequence[Point]]", kept: "Sequence[Kept]", rate: "FailureRate"
) -> dict[str, Any]:
    return {
        "step": {
            "seconds": step.seconds,
            "bubble": step.bubble,
            "busy": [step.busy(stage) for stage in range(step.stages)],
            "micro_batches": config.micro_batches,
            "replicas_simulated": step.replicas,
        },
        "scaling": {name: [asdict(point) for point in points] for name, points in curves.items()},
        "failures": {"per_gpu_hour": rate.per_gpu_hour, "source": rate.source},
        "goodput": [
            # JSON has no infinity
            asdict(one) | {"hours_between": one.hours_between if rate.per_gpu_hour else None}
            | {"young": one.young if rate.per_gpu_hour else None}
            for one in kept
        ],
    }  # fmt: skip


def _show(
    config: "Config",
    step: "Step",
    curves: "Mapping[str, Sequence[Point]]",
    kept: "Sequence[Kept]",
    rate: "FailureRate",
    title: str,
) -> None:
    from pipelines.tables import show, table

    tokens = config.data.streams * config.data.segment
    click.secho(f"{title}: {step.seconds:.3f} s, {tokens / step.seconds:,.0f} tokens/s", bold=True)
    click.echo(f"ranks wait {step.bubble:.1%} of a step; {config.micro_batches} micro-batches")
    rows = [
        (str(stage), _bar(step.busy(stage) / step.seconds), f"{step.busy(stage):.3f}") for stage in range(step.stages)
    ]
    show(table(("stage", "computes", "s"), rows, right=("s",)))
    for name, points in curves.items():
        click.secho(f"\n{name} scaling", bold=True)
        cells = [
            (f"{p.gpus:,}", f"{p.micro_batches}", f"{p.seconds:.3f}", f"{p.bubble:.1%}", f"{p.tokens_per_second:,.0f}",
             f"{p.mfu:.1%}", f"{p.efficiency:.1%}")
            for p in points
        ]  # fmt: skip
        head = ("GPUs", "micro-batches", "step s", "wait", "tokens/s", "MFU", "efficiency")
        show(table(head, cells, right=head))
    click.secho("\nruns with failures", bold=True)
    click.echo(f"{rate.per_gpu_hour:.3g} for each GPU and hour: {rate.source}")
    columns = ("GPUs", "hours between", "stall s", "write s", "save every s", "goodput", "saving", "lost", "restarting",
               "lost min/day")  # fmt: skip
    show(table(columns, [_kept_cells(one) for one in kept], right=columns))


def _kept_cells(kept: "Kept") -> list[str]:
    shares, saving = kept.goodput, kept.saving
    return [
        f"{kept.gpus:,}",
        f"{kept.hours_between:,.1f}",
        f"{saving.stall:.2f}",
        f"{saving.write:.0f}",
        f"{kept.interval:,.0f}",
        *(f"{share:.2%}" for share in (shares.trained, shares.saving, shares.lost, shares.restarting)),
        f"{_MINUTES * (1 - shares.trained):.1f}",
    ]


def _bar(share: float, width: int = 40) -> str:
    return "█" * round(share * width) + "·" * (width - round(share * width))
