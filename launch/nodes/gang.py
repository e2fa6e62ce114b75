"""All nodes of an attempt: methods that ask every agent at once, with one deadline for all answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from brt_dist.config.environment import CPU_DEFAULTS
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode, LaunchError
from brt_dist.parallel.device_choice import DeviceChoice
from launch.nodes.agent import AgentRequest, NodeInfo
from launch.nodes.agents import Agents, NoAnswer
from launch.nodes.environment import Placement, variables_for_ranks
from launch.nodes.processes import End
from launch.nodes.ray_agents import RayAgents, choose_device

_ANSWER_SECONDS = 30.0  # no method of an agent takes long


class Gang:
    """Context manager: agents on `launch.nodes` nodes.

    Args:
        config: of the run.
        device: what the ranks use; None: decide from what the nodes offer (`choose_device`).
        agents: makes the agents; the default is Ray's.

    Attributes:
        device: what the ranks use.
        nodes: facts about each node.

    Raises:
        LaunchError: the nodes are not available within `launch.start_timeout_seconds`.
        PlatformError: they cannot agree on a device.
    """

    def __init__(
        self,
        config: Config,
        device: DeviceChoice | None = None,
        agents: Callable[[Config, DeviceChoice], Agents] = RayAgents,
    ) -> None:
        self._config = config
        self._make_agents = agents
        self.device = device or choose_device(config)
        self.nodes: list[NodeInfo] = []
        self._local = config.parallel.world_size // config.launch.nodes
        self._lost: dict[int, float] = {}  # node to the time when its agent was found dead
        self._started = False

    def __enter__(self) -> "Gang":
        self._agents = self._make_agents(self._config, self.device)
        try:
            described = [(address,) for address in self._agents.addresses]
            self.nodes = self.ask_each("describe", described, self._config.launch.start_seconds)
        except BaseException:
            self._agents.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._agents.release()

    def start(self, command: tuple[str, ...], directory: Path, folder: Path) -> None:
        """Start `command` once per rank; node 0 chooses the port of the rendezvous."""
        config, local = self._config, self._local
        world, address = config.parallel.world_size, self.nodes[0].address
        port = self.ask(0, "free_port", address)
        passed, threads, tracking = (
            {**(CPU_DEFAULTS if self.device.kind == "cpu" else {}), **variables_for_ranks(config.launch)},
            config.launch.threads_per_rank,
            config.run.tracking,
        )
        sample_seconds = tracking.system_seconds if tracking.enabled else 0.0
        requests = []
        for node in range(len(self.nodes)):
            placements = tuple(
                Placement(node * local + rank, world, rank, local, node, address, port) for rank in range(local)
            )
            requests.append(
                (AgentRequest(command, placements, passed, threads, str(directory), str(folder), sample_seconds),)
            )
        self._started = True
        self.ask_each("start", requests)

    def ended(self) -> dict[int, End]:
        """The ranks that have ended so far.  Ranks die with their agent, so if it is gone they count as killed."""
        ends = {end.rank: end for answer in self._ask_living("ended").values() for end in answer}
        for node, when in self._lost.items():
            for rank in range(node * self._local, (node + 1) * self._local):
                ends[rank] = End(rank, int(ExitCode.LOST_NODE), when, told=False)
        return ends

    def terminate(self) -> None:
        self._ask_living("terminate")

    def dump(self) -> dict[int, str]:
        """Have all ranks write their stacks to their logs; returns, by rank, why some cannot."""
        answers = self._ask_living("dump")
        return {rank: f"on {self._name(node)} {text}" for node, said in answers.items() for rank, text in said.items()}

    def kill(self) -> None:
        if self._started:
            self._ask_living("kill")

    # ---- questions to agents --------------------------------------------------------------------------------

    def ask(self, node: int, method: str, *arguments: Any) -> Any:
        """Call a method of one node's agent.

        Raises:
            LaunchError: it raised, does not answer, or is gone.
        """
        return self._checked(self._ask({node: arguments}, method, _ANSWER_SECONDS))[0]

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every node's agent with the same arguments; returns the answers by node.

        Raises:
            LaunchError: see `ask_each`.
        """
        return self.ask_each(method, [arguments] * len(self._agents.addresses))

    def ask_each(self, method: str, arguments: Sequence[Sequence[Any]], seconds: float = _ANSWER_SECONDS) -> list[Any]:
        """Call a method of every node's agent, with the arguments of that node; returns the answers by node.

        Raises:
            LaunchError: one raised, did not answer within `seconds`, or is gone; names every such node.
        """
        return self._checked(self._ask(dict(enumerate(arguments)), method, seconds))

    def _ask_living(self, method: str) -> dict[int, Any]:
        """The answers by node; agents that do not give one count as lost from now on."""
        living = {node: () for node in range(len(self.nodes)) if node not in self._lost}
        answers = self._ask(living, method, _ANSWER_SECONDS)
        found = {node: answer for node, answer in answers.items() if not isinstance(answer, NoAnswer)}
        self._lost.update((node, time.time()) for node in answers.keys() - found.keys())
        return found

    def _ask(self, arguments: Mapping[int, Sequence[Any]], method: str, seconds: float) -> dict[int, Any]:
        if not arguments:
            return {}
        calls = [self._agents.begin(node, method, given) for node, given in arguments.items()]
        return dict(zip(arguments, self._agents.answers(calls, seconds), strict=True))

    def _checked(self, answers: Mapping[int, Any]) -> list[Any]:
        failed = {node: answer for node, answer in answers.items() if isinstance(answer, NoAnswer)}
        if failed:
            raise LaunchError("; ".join(f"node {self._name(node)}: {answer}" for node, answer in failed.items()))
        return list(answers.values())

    def _name(self, node: int) -> str:
        return self.nodes[node].host if node < len(self.nodes) else str(self._agents.addresses[node] or node)
