"""Checks, before anything starts, that a run fits its devices; and chooses the layout for `parallel: auto`."""

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.loading import Resolved
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.planning.devices import DeviceSpec, device_of_driver, device_spec, known_devices, this_machine
from brt_dist.planning.layout_plan import LayoutPlan, Planner, gb, layout_json, layout_words
from brt_dist.planning.search import least_devices, search
from launch.doctor.node import gpus
from launch.run.sizes import with_vocabulary


def refuse_oversize(config: Config) -> None:
    """Refuse a run whose ranks need more memory than their devices have, unless `run.allow_oversize` is set.

    Only memory that the plan counts is compared, with no room for libraries or fragmentation, so a run that passes may
    still not fit.
    Unknown devices are taken to be the largest that the plan knows.

    Raises:
        ConfigError: it does not fit; says by how much, and the nearest layout that does.
    """
    if config.run.allow_oversize:
        return
    device = device_of(config)
    if device is None:
        return
    planner = Planner(config, device)
    stages = planner.memory(config.parallel)
    fullest = max(range(len(stages)), key=lambda stage: stages[stage].device)
    memory, on_cpu = stages[fullest], device.name == "cpu"
    needed = memory.device + (memory.host if on_cpu else 0)
    if needed <= device.memory:
        return
    parts = sorted(memory.parts(), key=lambda part: -part[1])[:3]
    told = ", ".join(f"{name} {gb(size)}" for name, size in parts)
    where = f" of stage {fullest}" if len(stages) > 1 else ""
    has = (
        f"a rank's share of this machine is {gb(device.memory)}" if on_cpu else f"{device.name} has {gb(device.memory)}"
    )
    raise ConfigError(
        f"this run does not fit: a rank{where} needs {gb(needed)} ({told}, ...), and {has}; nearest: "
        f"{_nearest(planner, config)}, or run.allow_oversize=true to start it anyway"
    )


def laid_out(resolved: Resolved) -> Resolved:
    """The config with the layout that the plan chose if `parallel: auto` asks for one, and where that layout is from.

    Raises:
        ConfigError: no layout of the devices fits, or they are not known.
    """
    config = resolved.config
    if not config.parallel.auto:
        return resolved
    known, device = with_vocabulary(config), device_of(config)
    if known is None or device is None:
        lacks = "the size of the vocabulary" if known is None else "the devices"
        nearest = "model.vocab_size=32000" if known is None else "launch.gpu_kind=h100"
        raise ConfigError(f"parallel: auto needs to know {lacks}; nearest: {nearest}")
    count = _devices(config)
    planner = Planner(known, device)
    plans = search(planner, count).plans
    if not plans:
        raise ConfigError(
            f"parallel: auto finds no layout of {count} x {device.name} that fits; nearest: {_more(planner, count)}"
        )
    parallel = plans[0].parallel.model_copy(update={"auto": False})
    before, after = config.parallel.model_dump(), parallel.model_dump()
    origin = f"parallel: auto, planned for {count} x {device.name}"
    changed = {f"parallel.{key}": origin for key in after if before[key] != after[key]}
    changed |= {f"parallel.zero.{key}": origin for key, value in after["zero"].items() if before["zero"][key] != value}
    provenance = {key: changed.get(key, where) for key, where in resolved.provenance.items()}
    return Resolved(config.model_copy(update={"parallel": parallel}), provenance)


def device_of(config: Config) -> DeviceSpec | None:
    """The device of the ranks: the one that `launch.gpu_kind` names, one of this machine, or the largest known GPU.

    None for CPUs of other machines.
    """
    launch = config.launch
    ranks = _devices(config) if config.parallel.auto else config.parallel.world_size
    if launch.gpu_kind is not None:
        return device_spec(launch.gpu_kind, max(ranks // launch.nodes, 1))
    here = launch.backend == "local" and launch.ray_address in (None, "local") and launch.nodes == 1
    if not here:
        specs = [device_spec(name) for name in known_devices() if name != "cpu"]
        return max(specs, key=lambda spec: spec.memory) if gpus_per_node(config) else None
    found = gpus() if config.run.device != "cpu" else []
    if found:
        device = device_of_driver(found[0]["name"]) or device_spec("h100").model_copy(update={"name": found[0]["name"]})
        return device.model_copy(update={"memory": float(found[0]["total"]), "devices_per_node": len(found)})
    return None if config.run.device == "cuda" else this_machine(ranks)


def _devices(config: Config) -> int:
    """Devices that `parallel: auto` may use; on a machine without GPUs, one rank."""
    launch = config.launch
    if launch.gpus_per_node is not None:
        return launch.nodes * max(launch.gpus_per_node, 1)
    if launch.nodes > 1 or launch.ray_address not in (None, "local") or launch.backend != "local":
        raise ConfigError("parallel: auto needs launch.gpus_per_node; nearest: launch.gpus_per_node=8")
    return max(len(gpus()), 1) if config.run.device != "cpu" else 1


def _nearest(planner: Planner, config: Config) -> str:
    """The layout with the same number of ranks that fits and changes least, or else how many devices are needed."""
    world = config.parallel.world_size
    given = layout_json(config.parallel)

    def changed(plan: LayoutPlan) -> tuple[int, float]:
        found = layout_json(plan.parallel)
        return sum(found[key] != given[key] for key in given), plan.time.total

    plans = search(planner, world).plans
    if not plans:
        return _more(planner, world)
    found = layout_json(min(plans, key=changed).parallel)
    return layout_words({key: value for key, value in found.items() if value != given[key]})


def _more(planner: Planner, devices: int) -> str:
    """The number of devices on which some layout fits."""
    if planner.device.name == "cpu":
        return "a smaller model, fewer data.streams, or a shorter data.segment"
    found = least_devices(planner, devices)
    if found is None:
        return "a smaller model"
    return f"{found.parallel.world_size} devices with {layout_words(layout_json(found.parallel))}"
