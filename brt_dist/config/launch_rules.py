"""Rules of the section `launch`: those of all backends, and those of the chosen one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from brt_dist.config.environment import broken_variables
from brt_dist.kinds import BACKENDS

if TYPE_CHECKING:
    from brt_dist.config.schema import Config


def gpus_per_node(config: "Config") -> int:
    """GPUs to request per node: `launch.gpus_per_node`, or else one per rank if the run needs GPUs."""
    if config.launch.gpus_per_node is not None:
        return config.launch.gpus_per_node
    return config.parallel.world_size // config.launch.nodes if config.run.device == "cuda" else 0


def broken_launch_rules(config: "Config") -> Iterator[str]:
    """A message for each launch rule that `config` breaks."""
    yield from _gpus(config)
    yield from _device(config)
    yield from broken_variables(config.launch.environment)
    yield from broken_variables(config.launch.default_environment, "launch.default_environment")
    yield from BACKENDS[config.launch.backend].broken_rules(config)


def _device(config: "Config") -> Iterator[str]:
    """A backend that requests nodes must know whether to request GPUs; `auto` would get none, and train on CPUs."""
    backend, ranks = config.launch.backend, config.parallel.world_size // config.launch.nodes
    if BACKENDS[backend].requests_gpus and config.run.device == "auto" and config.launch.gpus_per_node is None:
        yield (
            f"launch.backend={backend} requests GPUs before any node can be asked whether it has some, so "
            f"run.device=auto is not enough; nearest: run.device=cuda (launch.gpus_per_node={ranks}), or run.device=cpu"
        )


def _gpus(config: "Config") -> Iterator[str]:
    given, ranks = config.launch.gpus_per_node, config.parallel.world_size // config.launch.nodes
    if config.run.device == "cuda" and given is not None and given < ranks:
        yield (
            f"launch.gpus_per_node={given}, but each of launch.nodes={config.launch.nodes} nodes runs {ranks} ranks "
            f"with run.device=cuda; nearest: launch.gpus_per_node={ranks}"
        )
