"""The same model on more GPUs: step time, throughput and goodput."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from brt_dist.config.schema import Config
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.memory import held_by, plan_of
from brt_dist.planning.simulator.disturbance import UNDISTURBED, Disturbance
from brt_dist.planning.simulator.failure_rates import FailureRate
from brt_dist.planning.simulator.goodput import Goodput, Saving, daly, simulate_run, young
from brt_dist.planning.simulator.machine import Machine
from brt_dist.planning.simulator.roofline import stage_seconds
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import Step, simulate_step
from brt_dist.planning.simulator.work import axes_of, stage_work

Scaling: TypeAlias = Literal["strong", "weak"]
SIZES = tuple(8 * 2**doubled for doubled in range(12))  # 8 to 16,384
_WITHOUT_FAILURES = 3600.0  # seconds between saves
_ADAMW = 12  # bytes of a weight in a checkpoint: fp32, with two moments


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
    """What failures leave of a run on some GPUs.

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


def stages_of(config: Config, machine: Machine) -> list[StageSeconds]:
    """Seconds of each stage, by the roofline."""
    axes = axes_of(config)
    return [stage_seconds(stage_work(config, stage), axes, machine) for stage in range(axes.pipeline)]


def step_of(config: Config, machine: Machine, replicas: int = 1, disturbance: Disturbance = UNDISTURBED) -> Step:
    """A simulated step of a config."""
    return simulate_step(stages_of(config, machine), config.micro_batches, replicas, disturbance)


def scaled(config: Config, gpus: int, scaling: Scaling) -> Config | None:
    """The config with as many data parallel ranks as make `gpus`; None if there is no such layout.

    Args:
        scaling: "strong": as many streams as before; "weak": as many for each data parallel rank.
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


def curve(config: Config, machine: Machine, scaling: Scaling, sizes: Iterable[int] = SIZES) -> list[Point]:
    """Points of a scaling curve, at the sizes for which there is a layout."""
    found: list[Point] = []
    flops = TRAINING * forward_flops(config.model)
    for gpus in sizes:
        one = scaled(config, gpus, scaling)
        if one is None:
            continue
        step = step_of(one, machine)
        rate = one.data.streams * one.data.segment / step.seconds
        first = found[0].tokens_per_second / found[0].gpus if found else rate / gpus
        share, mfu = rate / gpus / first, rate * flops / gpus / machine.peak
        point = Point(gpus, one.data.streams, one.micro_batches, step.seconds, step.bubble, rate, mfu, share)
        found.append(point)
    return found


def saving_of(config: Config, machine: Machine, to_host: float, to_storage: float, restart: float) -> Saving:
    """Seconds of saves: each rank copies what it holds to its host, then each node writes its share.

    Args:
        to_host: bytes a second that a GPU copies to its host.
        to_storage: bytes a second that a node writes.
        restart: seconds from a failure until training goes on.
    """
    held = [held_by(config, stage) for stage in range(config.parallel.pipeline)]
    of_rank = max(one.optimizer + one.carried for one in held)
    carried = sum(one.carried for one in held) * config.parallel.tensor * config.parallel.data
    nodes = max(config.parallel.world_size // machine.node, 1)
    return Saving(of_rank / to_host, (_ADAMW * plan_of(config).parameters + carried) / nodes / to_storage, restart)


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
