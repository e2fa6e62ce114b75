"""The environment variables of a rank: its node's own, the user's, and those that torch needs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from brt_dist.config.environment import passed_on
from brt_dist.config.launch import LaunchConfig
from launch.nodes.listening import anywhere

# Variables of Ray's workers that are meaningless or wrong in a rank.
_RAY_PREFIXES = ("RAY_", "SPT_NOENV", "PYTHONBREAKPOINT")


@dataclass(frozen=True)
class Placement:
    """The place of a rank: its number in the world and on its node, and the address and port of rank 0."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    master_address: str
    master_port: int

    def variables(self) -> dict[str, str]:
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def variables_for_ranks(launch: LaunchConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every rank gets on every node: variables of the launcher's environment, and those that the config sets."""
    own = anywhere(os.environ if environment is None else environment)
    return {**passed_on(launch.pass_environment, own), **launch.environment}


def rank_environment(
    node: Mapping[str, str], passed: Mapping[str, str], placement: Placement, threads: int | None, cores: int
) -> dict[str, str]:
    """The complete environment of a rank.

    Args:
        node: environment of the agent.
        passed: from `variables_for_ranks`.
        placement: of the rank.
        threads: CPU threads of a rank; None: its share of the node's cores, unless OMP_NUM_THREADS is exported.
        cores: of the node.
    """
    environment = {name: value for name, value in anywhere(node).items() if not name.startswith(_RAY_PREFIXES)}
    share = str(max(cores // placement.local_world_size, 1))
    environment["OMP_NUM_THREADS"] = share  # Ray has set it to the CPUs of the agent
    environment.update(passed)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    environment["PYTHONUNBUFFERED"] = "1"  # keep the last output of a rank that is killed
    if placement.world_size == placement.local_world_size and os.path.exists("/sys/class/net/lo"):
        # On one machine, how the host name resolves must not matter.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.update(placement.variables())
    return environment
