"""The agent of this machine, in this process: what a run on one machine uses instead of Ray.

Ray would take seconds to start for one agent.  The ranks are below reapers, as with Ray, so they end with this process.
"""

import os
import socket
from collections.abc import Sequence
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.parallel.device_choice import DeviceChoice, NodeDevices, device_for_all, without_cuda
from launch.doctor.node import gpus
from launch.nodes.agent import NodeAgent
from launch.nodes.agents import NoAnswer


def needs_ray(config: Config, ray_address: str | None) -> bool:
    """Whether a run needs Ray: for several machines, and to fetch remote data for all ranks of a machine."""
    from brt_dist.data.open import remote_places

    return ray_address is not None or config.launch.nodes > 1 or bool(remote_places(config.data))


class LocalAgents:
    """Has the methods of `launch.nodes.agents.Agents`; each call is done when `begin` returns.

    Args:
        config, device: unused; the other kind of agents needs them.
    """

    def __init__(self, config: Config, device: DeviceChoice) -> None:
        self._agent = NodeAgent()

    @property
    def addresses(self) -> list[str | None]:
        return [None]  # nobody else reaches it

    def begin(self, node: int, method: str, arguments: Sequence[Any]) -> Any:
        try:
            return getattr(self._agent, method)(*arguments)
        except Exception as error:  # as a remote agent would
            return NoAnswer(str(error) or type(error).__name__)

    def answers(self, calls: Sequence[Any], seconds: float) -> list[Any | NoAnswer]:
        return list(calls)

    def release(self) -> None:
        self._agent.kill()


def local_device(config: Config) -> DeviceChoice:
    """Decide for all ranks, from the GPUs that this process may use.

    Raises:
        PlatformError: run.device=cuda, and there are too few, or torch cannot use them.
    """
    if (choice := without_cuda(config.run.device)) is not None:
        return choice
    host = NodeDevices(socket.gethostname(), config.parallel.world_size, _visible_gpus())
    return device_for_all(config.run.device, [host], 1)


def _visible_gpus() -> int:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(gpus())
    return (
        there if named is None else min(there, len([one for one in named.split(",") if one.strip() not in ("", "-1")]))
    )
