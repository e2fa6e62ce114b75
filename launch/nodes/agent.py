"""The agent of a node: a Ray actor that starts the node's ranks as ordinary processes, and reports on them.

Ranks die with their agent (see reaper.py), and the agent dies with the driver (Ray kills the actors of a job that is
gone).
"""

import os
import socket
import time
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
    """What the supervisor needs to know about a node."""

    host: str
    address: str
    cores: int
    pid: int


@dataclass(frozen=True)
class AgentRequest:
    """The ranks that an agent is asked to start: `command` once per placement.

    Attributes:
        command: of a rank.
        placements: one per rank.
        passed: environment variables of every rank.
        threads: CPU threads of a rank.
        directory: working directory.
        folder: of the attempt, for the logs.
        sample_seconds: interval of the system metrics; 0: no system metrics.
    """

    command: tuple[str, ...]
    placements: tuple[Placement, ...]
    passed: Mapping[str, str]
    threads: int | None
    directory: str
    folder: str
    sample_seconds: float = 0.0


class NodeAgent:
    """A plain class that `launch.nodes.gang` turns into an actor."""

    def __init__(self) -> None:
        self._processes = ProcessSet()
        self._sampler: SystemSampler | None = None

    def describe(self, address: str | None = None) -> NodeInfo:
        """Describe this node.

        Args:
            address: at which other nodes reach this one, if the caller knows better than the host name.
        """
        return NodeInfo(socket.gethostname(), address or "127.0.0.1", _cores(), os.getpid())

    def free_port(self, address: str) -> int:
        """A free port for the rendezvous of the ranks (rank 0 is on this node)."""
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])

    def report(self, folder: str, mark: str) -> node.NodeReport:
        return node.report(folder, mark)

    def unseen(self, folder: str, marks: Sequence[str]) -> list[str]:
        return node.unseen(folder, marks)

    def clock(self) -> float:
        return time.time()

    def listen(self, address: str, connections: int) -> int:
        return node.listen(address, connections)

    def reach(self, address: str, port: int) -> str | None:
        return node.reach(address, port)

    def start(self, request: AgentRequest) -> None:
        """Start the ranks.

        Raises:
            OSError: the directory or the command does not exist.
        """
        directory, attempt = Path(request.directory), AttemptDirectory(Path(request.folder))
        if not directory.is_dir():
            raise FileNotFoundError(f"{socket.gethostname()} has no folder {directory}: it must be on shared storage")
        specs = [
            ProcessSpec(
                placement.rank,
                request.command,
                rank_environment(os.environ, request.passed, placement, request.threads, _cores()),
                directory,
                attempt.log(placement.rank),
            )
            for placement in request.placements
        ]
        self._processes.start(specs)
        if request.sample_seconds > 0:
            self._sampler = SystemSampler(attempt.run.path, request.sample_seconds)

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
