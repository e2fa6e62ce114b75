"""The agents of the nodes as their callers see them: all at once, with one deadline."""

from collections.abc import Sequence
from typing import Any, Protocol

from brt_dist.errors import LaunchError


class Agents(Protocol):
    """One agent per node; `launch.nodes.ray_agents.RayAgents` is the real one."""

    @property
    def addresses(self) -> Sequence[str | None]:
        """Addresses at which other nodes reach the nodes; None where unknown."""
        ...

    def begin(self, node: int, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of a node's agent without waiting; returns a handle for `answers`."""
        ...

    def answers(self, calls: Sequence[Any], seconds: float) -> "list[Any | NoAnswer]":
        """Wait for all calls together, at most `seconds`; returns what each returned, or why it did not."""
        ...

    def release(self) -> None:
        """End the agents and give the nodes back."""
        ...


class NoAnswer(LaunchError):
    """An agent raised, did not answer in time, or is gone; says which of it, without the node's name."""
