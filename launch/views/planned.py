"""Compares the plan of a run with what happened, part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.events import AttemptEvent, CheckpointEvent, Event, PartsEvent, StepEvent
from brt_dist.planning.devices import DeviceSpec, device_of_driver, device_spec, known_devices
from brt_dist.planning.layout_plan import LayoutPlan, Planner
from brt_dist.planning.stage_time import stage_time
from brt_dist.planning.step_time import StepTime, of_stage
from launch.run.sizes import with_vocabulary

_PARTS = {  # of a step: name, parts in the plan, parts in a run
    "compute": (("compute", "launches", "streams"), ("forward", "backward")),
    "tensor parallel collectives": (("tensor",), ("tensor",)),
    "the pipeline's transfers and bubble": (("pipeline", "bubble"), ("pipeline",)),
    "reducing gradients": (("reduce",), ("reduce",)),
    "gathering weights": (("gather",), ("gather",)),
    "the update": (("update",), ("update",)),
    "agreement of all ranks": ((), ("agreement",)),
    "anything else": ((), ("other",)),
}


@dataclass(frozen=True)
class Compared:
    """A part of the plan and its measurement; None if not planned or not measured.

    Attributes:
        name: what it is.
        unit: of both.
    """

    name: str
    unit: Literal["bytes", "seconds", "share"]
    planned: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over planned."""
        return self.measured / self.planned if self.planned and self.measured is not None else None


def compared(config: Config, events: Sequence[Event]) -> list[Compared]:
    """Compare the last attempt with its plan; empty if the plan does not know its device or vocabulary.

    Times on a CPU are planned only with its calibration (`launch.gpu_kind: FILE`); otherwise only memory is.
    """
    attempt = next((event for event in reversed(events) if isinstance(event, AttemptEvent)), None)
    if attempt is None or (planner := _planner(config, attempt)) is None:
        return []
    plan = planner.plan(config.parallel.model_copy(update={"data": attempt.layout.data or 1}))
    first = stage_time(planner.sizes, plan.parallel, 0, plan.device)  # of rank 0, which measures
    time = of_stage(plan.time, first, planner.sizes.on(plan.parallel).micro_batches) if plan.device.is_timed else None
    return list(_compared(plan, time, events, attempt))


def _planner(config: Config, attempt: AttemptEvent) -> Planner | None:
    """A planner for the attempt's layout, which may have fewer nodes."""
    ranks = (attempt.world_size or 1) // config.launch.nodes
    device = _device(config.launch.gpu_kind, attempt.device or "", max(ranks, 1))
    known = with_vocabulary(config, ask_servers=False)
    if device is None or known is None:
        return None
    return Planner(known, device)


def _device(kind: str | None, driver: str, ranks: int) -> DeviceSpec | None:
    """The device of the file that the config names, if it can still be read; or of the name that the driver gave."""
    if kind is not None and kind not in known_devices():
        try:
            return device_spec(kind, ranks)
        except ConfigError:
            pass
    return device_of_driver(driver, ranks)


def _compared(
    plan: LayoutPlan, time: StepTime | None, events: Sequence[Event], attempt: AttemptEvent
) -> Iterator[Compared]:
    steps = [one for one in events if isinstance(one, StepEvent) and one.attempt == attempt.attempt]
    stalls = [one.stall_seconds for one in events if isinstance(one, CheckpointEvent) and one.stall_seconds is not None]
    peaks = [step.peak_memory_bytes for step in steps if step.peak_memory_bytes is not None]
    seconds = [step.step_seconds for step in steps[1:] if step.step_seconds is not None]  # the first one compiles
    first = plan.stages[0]
    on_cpu = plan.device.name == "cpu"  # there host memory is device memory, and libraries are measured too
    yield Compared("peak memory of rank 0", "bytes", first.device + on_cpu * first.host, max(peaks, default=None))
    for name, size in first.parts():
        yield Compared(f"{name} of rank 0", "bytes", size, None)
    yield Compared("step", "seconds", time.total if time else None, median(seconds) if seconds else None)
    waits = [step.data_wait_seconds for step in steps[1:] if step.data_wait_seconds is not None]
    yield Compared("waiting for data", "seconds", time.data if time else None, median(waits) if waits else None)
    stall = time.checkpoint * plan.checkpoint_every if time else None
    yield Compared("stall of a checkpoint", "seconds", stall, fmean(stalls) if stalls else None)
    yield from _parts(time, [one for one in events if isinstance(one, PartsEvent) and one.attempt == attempt.attempt])
    if time is not None:
        shares = [step.mfu for step in steps[1:] if step.mfu is not None]
        yield Compared("MFU", "share", plan.mfu, median(shares) if shares else None)


def _parts(time: StepTime | None, told: Sequence[PartsEvent]) -> Iterator[Compared]:
    """The parts of a step that were planned or measured."""
    for name, (planned, parts) in _PARTS.items():
        expected = sum(getattr(time, one) for one in planned) if time and planned else None
        found = median(sum(event.seconds.get(part, 0.0) for part in parts) for event in told) if told else None
        if expected or found:
            yield Compared(f"step: {name}", "seconds", expected, found)
