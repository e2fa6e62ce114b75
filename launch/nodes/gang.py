"""The agents of all nodes: a placement group, one agent per node, and methods that address all of them."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.data.prefetch import NodeCache
from brt_dist.errors import ExitCode, LaunchError, PlatformError
from launch.nodes.agent import AgentRequest, NodeAgent, NodeInfo
from launch.nodes.environment import Placement, passed_on
from launch.nodes.processes import End

_ANSWER_SECONDS = 30.0  # no method of an agent takes long


class Gang:
    """Context manager: agents on `launch.nodes` nodes of the Ray cluster that this process is connected to.

    Raises:
        LaunchError: the cluster does not provide the nodes within `launch.start_timeout_seconds`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._group: Any = None
        self._agents: list[Any] = []
        self._caches: list[Any] = []
        self.nodes: list[NodeInfo] = []
        self._local = config.parallel.world_size // config.launch.nodes
        self._lost: dict[int, float] = {}  # node to the time when its agent was found dead
        self._started = False
        self.has_gpus = False  # every rank has one; known once the agents are there

    def __enter__(self) -> "Gang":
        try:
            self._make_agents()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._release()

    def start(self, command: tuple[str, ...], directory: Path, folder: Path) -> None:
        """Start `command` once per rank; node 0 chooses the port of the rendezvous."""
        world = self._config.parallel.world_size
        address = self.nodes[0].address
        port = self.ask(0, "free_port", address)
        passed = passed_on()
        tracking = self._config.run.tracking
        sample_seconds = tracking.system_seconds if tracking.enabled else 0.0
        for node in range(len(self._agents)):
            placements = tuple(
                Placement(node * self._local + local, world, local, self._local, node, address, port)
                for local in range(self._local)
            )
            threads = self._config.launch.threads_per_rank
            request = AgentRequest(command, placements, passed, threads, str(directory), str(folder), sample_seconds)
            self._started = True
            self.ask(node, "start", request)

    def ended(self) -> dict[int, End]:
        """The ranks that have ended so far.  Ranks die with their agent, so if it is gone they count as killed."""
        ends: dict[int, End] = {}
        for node in range(len(self._agents)):
            if node not in self._lost:
                try:
                    ends.update({end.rank: end for end in self.ask(node, "ended")})
                    continue
                except LaunchError:
                    self._lost[node] = time.time()
            for rank in range(node * self._local, (node + 1) * self._local):
                ends[rank] = End(rank, int(ExitCode.LOST_NODE), self._lost[node], told=False)
        return ends

    def terminate(self) -> None:
        self._tell_all("terminate")

    def dump(self) -> dict[int, str]:
        """Have all ranks write their stacks to their logs; returns, by rank, why some cannot."""
        found: dict[int, str] = {}
        for node in range(len(self._agents)):
            if node not in self._lost:
                try:
                    found.update(
                        {rank: f"on {self._name(node)} {text}" for rank, text in self.ask(node, "dump").items()}
                    )
                except LaunchError:
                    self._lost[node] = time.time()
        return found

    def kill(self) -> None:
        if self._started:
            self._tell_all("kill")

    # ---- Ray ------------------------------------------------------------------------------------------------

    def _make_agents(self) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        launch = self._config.launch
        self.has_gpus = self._wants_gpus()
        bundle = {"CPU": 1.0, **({"GPU": float(self._local)} if self.has_gpus else {})}
        spread = "STRICT_SPREAD" if launch.nodes > 1 else "PACK"
        self._group = placement_group([bundle] * launch.nodes, strategy=spread)
        if not self._group.wait(launch.start_timeout_seconds):
            alive = [node for node in ray.nodes() if node["Alive"]]
            raise LaunchError(
                f"the Ray cluster did not provide {launch.nodes} nodes with {_listed(bundle)} each within "
                f"{launch.start_timeout_seconds:g} s; it has {len(alive)} nodes, free now: "
                f"{_listed(ray.available_resources())}; nearest: launch.nodes={max(len(alive), 1)}"
            )
        actor = ray.remote(NodeAgent)
        placed = [
            PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            for index in range(launch.nodes)
        ]
        for strategy in placed:
            options = {"num_cpus": 1, "num_gpus": bundle.get("GPU", 0), "max_restarts": 0}
            self._agents.append(actor.options(scheduling_strategy=strategy, **options).remote())
        self._make_caches(placed)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        table = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        for index in range(launch.nodes):
            self.nodes.append(
                self.ask(index, "describe", addresses.get(table[index]), seconds=launch.start_timeout_seconds)
            )

    def _make_caches(self, placed: Sequence[Any]) -> None:
        """Start a process per node that prefetches for its ranks; they work without it, so nothing waits for it."""
        from brt_dist.data.open import remote_places

        cache = self._config.data.cache
        if not remote_places(self._config.data):
            return
        for strategy in placed:
            actor = node_cache_actor(
                cache.directory,
                int(cache.budget_gb * 1e9),
                cache.retry_seconds,
                passed_on(),
                scheduling_strategy=strategy,
            )
            self._caches.append(actor)

    def _wants_gpus(self) -> bool:
        """Whether every rank gets a GPU; if there are too few, `cuda` is an error and `auto` means CPU."""
        import ray

        device = self._config.run.device
        if device == "cpu":
            return False
        most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if most >= self._local:
            return True
        shortage = f"{self._local} ranks per node, but no node of the Ray cluster has more than {most:g} GPUs"
        if device == "cuda":
            raise PlatformError(f"run.device=cuda: {shortage}; nearest: run.device=cpu")
        if most:
            print(f"warning: {shortage}; this run uses CPUs", file=sys.stderr)
        return False

    def ask(self, node: int, method: str, *arguments: Any, seconds: float = _ANSWER_SECONDS) -> Any:
        """Call a method of a node's agent.

        Raises:
            LaunchError: it raised, does not answer, or is gone.
        """
        import ray

        try:
            return ray.get(getattr(self._agents[node], method).remote(*arguments), timeout=seconds)
        except ray.exceptions.RayTaskError as error:
            raise LaunchError(f"node {self._name(node)}: {error.cause}") from None
        except ray.exceptions.GetTimeoutError:
            raise LaunchError(f"node {self._name(node)}: its agent did not answer within {seconds:g} s") from None
        except ray.exceptions.RayError as error:
            raise LaunchError(f"node {self._name(node)}: its agent is gone ({type(error).__name__})") from None

    def _tell_all(self, method: str) -> None:
        for node in range(len(self._agents)):
            if node not in self._lost:
                try:
                    self.ask(node, method)
                except LaunchError:
                    self._lost[node] = time.time()

    def _name(self, node: int) -> str:
        return self.nodes[node].host if node < len(self.nodes) else str(node)

    def _release(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        if not ray.is_initialized():
            return
        for actor in (*self._agents, *self._caches):
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in resources.items() if name in ("CPU", "GPU")) or "nothing"


def node_cache_actor(
    directory: Path | None, budget: int, retry_seconds: float, variables: Mapping[str, str], **options: Any
) -> Any:
    """A NodeCache as a Ray actor, which Ray restarts if it dies; the new one continues with the same folder.

    Args:
        directory: of the cache.
        budget: bytes that it may hold.
        retry_seconds: how long it retries an unavailable store.
        variables: environment variables of the fetches.
        options: of the actor, such as its placement.
    """
    import ray

    actor = ray.remote(NodeCache).options(num_cpus=0, max_restarts=-1, **options)
    return actor.remote(directory, budget, retry_seconds, variables)
