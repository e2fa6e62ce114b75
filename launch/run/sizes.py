"""Configs and devices for the plan."""

from collections.abc import Sequence
from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, LaunchConfig, ParallelConfig
from brt_dist.errors import BrtError, ConfigError
from brt_dist.files import is_url
from brt_dist.planning.devices import DeviceSpec, device_spec
from brt_dist.planning.search import with_devices

_ALONE = "run: {directory: brt-plan}\n"  # nothing is written there


def for_plan(files: Sequence[Path], overrides: Sequence[str]) -> Config:
    """The config with the vocabulary of its dataset, which need not exist.

    Raises:
        ConfigError: it cannot be loaded, or its vocabulary is not known.
    """
    config = load([_ALONE, *files], overrides).config
    known = with_vocabulary(config)
    if known is None:
        raise ConfigError(
            "the vocabulary size is unknown, because there is no dataset to take it from; "
            "nearest: model.vocab_size=32000"
        )
    return known


def with_vocabulary(config: Config, ask_servers: bool = True) -> Config | None:
    """The config with `model.vocab_size` set, from its dataset if needed; None if no dataset can be opened.

    Args:
        config: the config.
        ask_servers: also open datasets at URLs, which may take long.
    """
    if config.model.vocab_size is not None:
        return config
    from brt_dist.data.open import open_training

    places = [place for place, _ in config.data.training]
    if not places or (not ask_servers and any(is_url(place) for place in places)):
        return None
    try:
        with open_training(config.data) as dataset:
            model = config.model.with_tokens(dataset.vocab_size)
    except BrtError:
        return None
    return config.model_copy(update={"model": model})


def device_in(
    name: str, world: int, nodes: int | None = None, network: float | None = None, price: float | None = None
) -> DeviceSpec:
    """A device, as it is installed in nodes.

    Args:
        name: as for `device_spec`.
        world: devices in all.
        nodes: None: as many as its usual nodes need.
        network: Gbit/s of each device; None: as usual.
        price: dollars for an hour; None: as usual.

    Raises:
        ConfigError: devices and nodes do not go together.
    """
    if nodes is not None and world % nodes:
        raise ConfigError(f"{world} devices cannot be spread evenly over {nodes} nodes")
    device = device_spec(name, ranks_per_node=world // (nodes or 1))
    changes: dict[str, object] = {}
    if nodes is not None:
        changes["devices_per_node"] = world // nodes
    if network is not None:
        changes["network_rate"] = network * 1e9 / 8
    if price is not None:
        changes["price"] = price
    return device.model_copy(update=changes)


def on_devices(config: Config, world: int, device: DeviceSpec) -> ParallelConfig:
    """The layout of the config on `world` devices: with more or fewer data parallel ranks.

    Raises:
        ConfigError: it breaks a rule; says which, and the nearest layout.
    """
    parallel = config.parallel
    model = parallel.tensor * parallel.pipeline
    if world % model:
        raise ConfigError(
            f"{world} devices are not a multiple of parallel.tensor*pipeline = {model}; nearest: "
            f"--gpus {max(world // model, 1) * model}, or --search, which tries other layouts"
        )
    found = parallel.model_copy(update={"data": world // model})
    data = config.data
    if not data.training:
        data = data.model_copy(update={"dataset": Path("brt-plan-dataset")})
    given = config.model_copy(update={"launch": LaunchConfig(), "data": data})
    check(with_devices(given, found, device))
    return found
