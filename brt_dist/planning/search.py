"""All layouts for a number of devices, ranked by the time of a step; and the nearest that fits."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from brt_dist.config.layout_rules import divisors, layout_problems
from brt_dist.config.schema import Config, ParallelConfig
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.layout_plan import LayoutPlan, Planner

_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Ranked:
    """What a search found.

    Attributes:
        plans: those that fit, fastest first.
        oversize: those that do not, least memory first.
    """

    plans: list[LayoutPlan] = field(default_factory=list)
    oversize: list[LayoutPlan] = field(default_factory=list)

    def why_not_first(self, plan: LayoutPlan) -> str:
        """Why a plan is not the first: the part of a step in which it loses most."""
        best = self.plans[0]
        if plan is best:
            return f"fastest; most of its step is {plan.limit}"
        first, other = best.time.to_json(), plan.time.to_json()
        lost = {name: other[name] - first[name] for name in first if name != "total"}
        part = max(lost, key=lambda name: lost[name])
        slower = other["total"] / first["total"] - 1
        share = f"{slower:.0%}" if slower >= 0.005 else "less than 1%"
        return f"{share} slower: {part} takes {lost[part]:.2f} s more"


def search(planner: Planner, devices: int) -> Ranked:
    """Plan all legal layouts of a number of devices.

    Layouts that are only slower are not tried: memory of streams in host memory where it fits on the device, and an
    offloaded optimizer where both fit.
    """
    found = Ranked()
    for layout in _layouts(planner.config, devices, planner.device):
        for variant in _by_place(planner, layout):
            plan = planner.plan(variant)
            if plan.problem is None:
                found.plans.append(plan)
                break
            found.oversize.append(plan)
    found.plans.sort(key=lambda plan: (plan.time.total, plan.memory.device))
    found.oversize.sort(key=lambda plan: plan.memory.device)
    return found


def least_devices(planner: Planner, devices: int) -> LayoutPlan | None:
    """A plan on the fewest devices that suffice, doubling `devices` repeatedly; None if none do.

    For each number, only layouts that save memory at any cost are tried.
    """
    largest = planner.device.devices_per_node * planner.config.model.layers * planner.config.data.streams
    while devices <= largest:
        plans = [planner.plan(layout) for layout in _thrifty(planner, devices)]
        fitting = [plan for plan in plans if plan.problem is None]
        if fitting:
            return min(fitting, key=lambda plan: plan.time.total)
        devices *= 2
    return None


def with_devices(config: Config, parallel: ParallelConfig, device: DeviceSpec) -> Config:
    """The config on a layout, with the nodes that it needs."""
    nodes = -(-parallel.world_size // device.devices_per_node)
    launch = config.launch.model_copy(update={"nodes": nodes})
    return config.model_copy(update={"parallel": parallel, "launch": launch})


def _layouts(config: Config, devices: int, device: DeviceSpec) -> Iterator[ParallelConfig]:
    streams, layers = config.data.streams, config.model.layers
    for tensor in sorted(divisors(devices, device.devices_per_node)):
        for pipeline in sorted(divisors(devices // tensor, layers)):
            data = devices // (tensor * pipeline)
            if streams % data:
                continue
            for stage in (1,) if pipeline > 1 else (1, 2, 3):
                first = config.parallel.model_copy(
                    update={
                        "tensor": tensor, "pipeline": pipeline, "data": data, "zero_stage": stage, "stage_layers": (),
                        "micro_batch": 1, "sequence_parallel": False, "uneven_streams": False,
                    }
                )  # fmt: skip
                if layout_problems(with_devices(config, first, device)):
                    continue
                yield from _variants(config, first, device)


def _variants(config: Config, layout: ParallelConfig, device: DeviceSpec) -> Iterator[ParallelConfig]:
    """The same degrees with other micro-batches, recompute and sequence parallel."""
    for split in (False, True) if layout.tensor > 1 else (False,):
        divided = layout.model_copy(update={"sequence_parallel": split})
        if split and layout_problems(with_devices(config, divided, device)):
            continue
        for streams in _MICRO_BATCHES:
            if config.data.streams % (layout.data * streams):
                continue
            for recompute in ("none", "attention", "layer"):
                yield divided.model_copy(update={"micro_batch": streams, "recompute": recompute})


def _thrifty(planner: Planner, devices: int) -> Iterator[ParallelConfig]:
    """The layout of any degrees that needs least memory."""
    for layout in _layouts(planner.config, devices, planner.device):
        if layout.recompute == "layer" and layout.micro_batch == 1 and layout.sequence_parallel == (layout.tensor > 1):
            yield list(_by_place(planner, layout))[-1]


def _by_place(planner: Planner, layout: ParallelConfig) -> Iterator[ParallelConfig]:
    """A layout with ever more in host memory."""
    kept = layout.zero.model_copy(update={"offload_optimizer": "none", "offload_parameters": "none"})
    on_device = layout.model_copy(update={"stream_memory": "device", "zero": kept})
    on_host = on_device.model_copy(update={"stream_memory": "host"})
    yield on_device
    yield on_host
    if layout.pipeline == 1 and planner.config.optimizer.is_elementwise:
        yield on_host.model_copy(update={"zero": kept.model_copy(update={"offload_optimizer": "cpu"})})
