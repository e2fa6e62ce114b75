"""The same model on more GPUs: step time, throughput and goodput."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from brt_dist.config.schema import Config
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.simulator.disturbance import UNDISTURBED, Disturbance
from brt_dist.planning.simulator.failure_rates import FailureRate
from brt_dist.planning.simulator.goodput import Goodput, Saving, daly, simulate_run, young
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import Step, simulate_step
from brt_dist.planning.step_time import stage_seconds

Scaling: TypeAlias = Literal["strong", "weak"]
SIZES = tuple(8 * 2**doubled for doubled in range(12))  # 8 to 16,384
_WITHOUT_FAILURES = 3600.0  # seconds between saves


@dataclass(frozen=True)
class Point:
    """A config on some GPUs.

    Attributes:
        gpus: how many.
        streams: of a step.
        micro_batches: of a step, on each data parallel rank.
        seconds: of a step.
        bubble: share of the step that ranks wait.
        tokens_per_second: of all GPUs.
        mfu: FLOPs that the model asks for, as a share of the peak.
        efficiency: throughput of a GPU, as a share of that on the fewest GPUs.
    """

    gpus: int
    streams: int
    micro_batches: int
    seconds: float
    bubble: float
    tokens_per_second: float
    mfu: float
    efficiency: float


@dataclass(frozen=True)
class Kept:
    """What remains of a run on some GPUs after failures.

    Attributes:
        gpus: how many.
        hours_between: mean time between failures.
        saving: seconds of saves and restarts.
        interval: seconds between saves.
        young: the interval after Young.
        goodput: shares of the time.
    """

    gpus: int
    hours_between: float
    saving: Saving
    interval: float
    young: float
    goodput: Goodput


def stages_of(config: Config, device: DeviceSpec) -> list[StageSeconds]:
    """Seconds of each stage, from the plan."""
    planner = Planner(config, device)
    return stage_seconds(planner.sizes, config.parallel, device, planner.memory(config.parallel))


def step_of(config: Config, device: DeviceSpec, replicas: int = 1, disturbance: Disturbance = UNDISTURBED) -> Step:
    """A simulated step of a config."""
    return simulate_step(stages_of(config, device), config.micro_batches, replicas, disturbance)


def sizes_of(config: Config) -> list[int]:
    """Numbers of GPUs for scaling curves, 8 to 16,384: doubled again and again from what holds the model once."""
    model = config.parallel.tensor * config.parallel.pipeline
    doubled = (model * 2**times for times in range(SIZES[-1].bit_length()))
    return [gpus for gpus in doubled if SIZES[0] <= gpus <= SIZES[-1]]


def scaled(config: Config, gpus: int, scaling: Scaling) -> Config | None:
    """The config with enough data parallel ranks to use `gpus` GPUs; None if there is no such layout.

    Args:
        scaling: "strong": the same number of streams; "weak": the same number per data parallel rank.
    """
    parallel, streams = config.parallel, config.data.streams
    data, rest = divmod(gpus, parallel.tensor * parallel.pipeline)
    if rest or not data:
        return None
    if scaling == "weak":
        streams = config.micro_batches * parallel.micro_batch * data
    elif streams < data * parallel.micro_batch or streams % (data * parallel.micro_batch):
        return None
    return config.model_copy(
        update={
            "parallel": parallel.model_copy(update={"data": data}),
            "data": config.data.model_copy(update={"streams": streams}),
        }
    )


def curve(config: Config, device: DeviceSpec, scaling: Scaling, sizes: Iterable[int] | None = None) -> list[Point]:
    """Points of a scaling curve, at the sizes for which there is a layout; by default `sizes_of` the config."""
    found: list[Point] = []
    peak = device.peak_flops.bf16 if config.run.precision == "bf16" else device.peak_flops.fp32
    flops = Planner(config, device).flops_per_token
    for gpus in sizes_of(config) if sizes is None else sizes:
        one = scaled(config, gpus, scaling)
        if one is None:
            continue
        step = step_of(one, device)
        rate = one.data.streams * one.data.segment / step.seconds
        first = found[0].tokens_per_second / found[0].gpus if found else rate / gpus
        share, mfu = rate / gpus / first, rate * flops / gpus / peak
        found.append(Point(gpus, one.data.streams, one.micro_batches, step.seconds, step.bubble, rate, mfu, share))
    return found


def saving_of(config: Config, device: DeviceSpec, to_storage: float, restart: float) -> Saving:
    """Seconds of saves: each rank copies its share to its host, then each node writes.

    Args:
        to_storage: bytes a second that a node writes.
        restart: seconds from a failure until training continues.
    """
    saved, ranks = Planner(config, device).saved, config.parallel.world_size
    nodes = max(ranks // device.devices_per_node, 1)
    return Saving(saved / ranks / device.host_rate, saved / nodes / to_storage, restart)


def goodputs(
    config: Config, rate: FailureRate, savings: Sequence[tuple[int, Saving]], interval: float | None = None
) -> list[Kept]:
    """Goodput on some sizes.

    Args:
        rate: of failures.
        savings: GPUs, and what saves cost there.
        interval: seconds of training between saves; None: Daly's, or as long as a checkpoint is written; without
            failures an hour.
    """
    found = []
    for gpus, saving in savings:
        hours = rate.hours_between(gpus)
        between = hours * 3600
        best = max(daly(saving.stall, between), saving.write) if math.isfinite(between) else _WITHOUT_FAILURES
        chosen = interval or best
        run = simulate_run(chosen, saving, between)
        found.append(Kept(gpus, hours, saving, chosen, young(saving.stall, between), run))
    return found
