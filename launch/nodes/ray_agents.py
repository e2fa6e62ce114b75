"""The agents as Ray actors: a placement group that reserves the nodes, and one actor on each."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.data.prefetch import NodeCache
from brt_dist.errors import LaunchError
from brt_dist.parallel.device_choice import AS_TOLD, DeviceChoice, NodeDevices, device_for_all, without_cuda
from launch.nodes.agent import NodeAgent
from launch.nodes.agents import NoAnswer
from launch.nodes.environment import variables_for_ranks

_LOOK_SECONDS = 1.0


class RayAgents:
    """Agents on `launch.nodes` nodes of the Ray cluster that this process is connected to.

    Args:
        config: of the run.
        device: what the ranks will use; GPUs are reserved for them.

    Raises:
        LaunchError: the cluster does not provide the nodes in time.
    """

    def __init__(self, config: Config, device: DeviceChoice) -> None:
        self._config = config
        self._local = config.parallel.world_size // config.launch.nodes
        self._group: Any = None
        self._agents: list[Any] = []
        self._caches: list[Any] = []
        self._addresses: list[str | None] = []
        try:
            self._make(with_gpus=device.kind == "cuda")
        except BaseException:
            self.release()
            raise

    @property
    def addresses(self) -> list[str | None]:
        return self._addresses

    def begin(self, node: int, method: str, arguments: Sequence[Any]) -> Any:
        return getattr(self._agents[node], method).remote(*arguments)

    def answers(self, calls: Sequence[Any], seconds: float) -> list[Any | NoAnswer]:
        import ray

        ray.wait(list(calls), num_returns=len(calls), timeout=seconds)
        return [_answer(call, seconds) for call in calls]

    def release(self) -> None:
        """End the agents and give the nodes back."""
        import ray
        from ray.util.placement_group import remove_placement_group

        if not ray.is_initialized():
            return
        for actor in (*self._agents, *self._caches):
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)

    def _make(self, with_gpus: bool) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        launch = self._config.launch
        bundle = {"CPU": 1.0, **({"GPU": float(self._local)} if with_gpus else {})}
        spread = "STRICT_SPREAD" if launch.nodes > 1 else "PACK"
        self._group = placement_group([bundle] * launch.nodes, strategy=spread)
        if not self._group.wait(launch.start_seconds):
            raise _missing(launch.nodes, f"with {_listed(bundle)} each ", launch.start_seconds)
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
        self._addresses = [addresses.get(table[index]) for index in range(launch.nodes)]

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
                variables_for_ranks(self._config.launch),
                scheduling_strategy=strategy,
            )
            self._caches.append(actor)


def choose_device(config: Config) -> DeviceChoice:
    """Decide for all ranks, from what the cluster's nodes offer.

    Raises:
        LaunchError: run.device=auto, and the nodes are not available in time.
        PlatformError: the nodes disagree, or have too few GPUs.
    """
    launch, wanted = config.launch, config.run.device
    if len(_alive()) == 1 == launch.nodes and (choice := without_cuda(wanted)) is not None:  # this machine
        return choice
    deadline = time.monotonic() + launch.start_seconds
    while len(nodes := _alive()) < launch.nodes and wanted == "auto":  # nodes that join late have a vote too
        if time.monotonic() > deadline:
            raise _missing(launch.nodes, "", launch.start_seconds, "run.device=cuda or cpu, or ")
        time.sleep(_LOOK_SECONDS)
    if wanted == "cuda" and len(nodes) < launch.nodes:
        return DeviceChoice("cuda", AS_TOLD)
    ranks = config.parallel.world_size // launch.nodes
    offered = [NodeDevices(node["NodeManagerHostname"], ranks, int(node["Resources"].get("GPU", 0))) for node in nodes]
    return device_for_all(wanted, offered, launch.nodes)


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


def _answer(call: Any, seconds: float) -> Any | NoAnswer:
    import ray

    try:
        return ray.get(call, timeout=0)
    except ray.exceptions.RayTaskError as error:
        return NoAnswer(str(error.cause))
    except ray.exceptions.GetTimeoutError:
        return NoAnswer(f"its agent did not answer within {seconds:g} s")
    except ray.exceptions.RayError as error:
        return NoAnswer(f"its agent is gone ({type(error).__name__})")


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _missing(nodes: int, each: str, seconds: float, otherwise: str = "") -> LaunchError:
    import ray

    alive = len(_alive())
    return LaunchError(
        f"the Ray cluster did not provide {nodes} nodes {each}within {seconds:g} s; it has {alive} nodes, free now: "
        f"{_listed(ray.available_resources())}; nearest: {otherwise}launch.nodes={max(alive, 1)}"
    )


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in resources.items() if name in ("CPU", "GPU")) or "nothing"
