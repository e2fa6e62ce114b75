"""The agent of a node: a Ray actor that starts the node's ranks as ordinary processes, and reports on them.

Ranks die with their agent (see guard.py), and the agent with the driver (Ray ends the actors of a job that is gone).
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brt_dist.run_directory import AttemptDirectory
from launch.doctor import node
from launch.nodes.environment import Placement, rank_environment
from launch.nodes.processes import End, ProcessSet, ProcessSpec
from launch.nodes.system_metrics import SystemSampler


@dataclass(frozen=True)
class NodeInfo:
    """What the supervisor needs to know of a node."""

    host: str
    address: str
    cores: int
    pid: int


@dataclass(frozen=True)
class Orders:
    """What an agent starts: `command` once for each placement, in `directory`, with logs in `folder`.

    sample_seconds: between looks at what the node does (see system_metrics); 0: none.
    """

    command: tuple[str, ...]
    placements: tuple[Placement, ...]
    passed: Mapping[str, str]
    threads: int | None
    directory: str
    folder: str
    sample_seconds: float = 0.0


class NodeAgent:
    """Plain class; `launch.nodes.gang` makes it an actor."""

    def __init__(self) -> None:
        self._processes = ProcessSet()
        self._sampler: SystemSampler | None = None

    def describe(self, address: str | None = None) -> NodeInfo:
        """address: that under which other nodes reach this one, if the caller knows better than the host name."""
        return NodeInfo(socket.gethostname(), address or "127.0.0.1", _cores(), os.getpid())

    def free_port(self, address: str) -> int:
        """A port on which nobody listens at this moment, for the meeting of the ranks (rank 0 is on this node)."""
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])

    def report(self, folder: str, mark: str) -> node.NodeReport:
        return node.report(folder, mark)

    def unseen(self, folder: str, marks: Sequence[str]) -> list[str]:
        return node.unseen(folder, marks)

    def listen(self, address: str) -> int:
        return node.listen(address)

    def reach(self, address: str, port: int) -> str | None:
        return node.reach(address, port)

    def start(self, orders: Orders) -> None:
        """Start the ranks.  OSError with a clear message when the directory or the command is not there."""
        directory, attempt = Path(orders.directory), AttemptDirectory(Path(orders.folder))
        if not directory.is_dir():
            raise FileNotFoundError(f"{socket.gethostname()} has no folder {directory}: it must be on shared storage")
        specs = [
            ProcessSpec(
                placement.rank,
                orders.command,
                rank_environment(os.environ, orders.passed, placement, orders.threads, _cores()),
                directory,
                attempt.log(placement.rank),
            )
            for placement in orders.placements
        ]
        self._processes.start(specs)
        if orders.sample_seconds > 0:
            self._sampler = SystemSampler(attempt.run.path, orders.sample_seconds)

    def ended(self) -> Sequence[End]:
        return list(self._processes.ended().values())

    def terminate(self) -> None:
        self._processes.terminate()

    def dump(self) -> dict[int, str]:
        return self._processes.dump()

    def kill(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
        self._processes.kill()


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
