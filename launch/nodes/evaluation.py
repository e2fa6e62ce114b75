"""Starts the ranks of an evaluation, on this node or on the nodes of a Ray cluster, and waits for their results."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from brt_dist.config.loading import dump
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode, LaunchError
from brt_dist.eval_worker import EvaluationFolder, EvaluationRequest
from brt_dist.evaluation.score import Score
from brt_dist.failure import Failure
from brt_dist.files import write_atomic
from launch.nodes.agent import NodeAgent
from launch.nodes.environment import Placement, rank_environment
from launch.nodes.processes import End, ProcessSet, ProcessSpec
from launch.run.python import module_command

_LOCAL = "127.0.0.1"
_POLL_SECONDS = 0.2


class Ranks(Protocol):
    """The processes of all ranks, somewhere."""

    def ended(self) -> dict[int, End]: ...


def score_on_ranks(
    config: Config,
    request: EvaluationRequest,
    place: Path,
    ray_address: str | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[Score]:
    """Evaluate in a layout, one process for each of its ranks; they end when this process ends.

    Args:
        config: with the network, the layout, segment and streams.
        request: what to evaluate.
        place: an empty folder that all nodes share.
        ray_address: of the cluster with the nodes; None: all ranks run on this node, without Ray.
        on_tokens: called from time to time with the number of tokens predicted since the last call.

    Returns:
        The scores of each place, in their order, for each use of memory.

    Raises:
        BrtError: a rank failed; the class is that of the rank's error.
    """
    folder = EvaluationFolder(place)
    write_atomic(folder.config, dump(config))
    folder.write(request)
    command = tuple(module_command("brt_dist.eval_worker", str(place)))
    with (
        _on_this_node(config, command, folder)
        if ray_address is None
        else _on_nodes(config, command, folder, ray_address) as ranks
    ):
        _wait(ranks, folder, config.parallel.world_size, on_tokens)
    return [Score.from_json(found) for found in json.loads(folder.results.read_text())]


@contextmanager
def _on_this_node(config: Config, command: tuple[str, ...], folder: EvaluationFolder) -> Iterator[Ranks]:
    world, processes = config.parallel.world_size, ProcessSet()
    port, cores = NodeAgent().free_port(_LOCAL), len(os.sched_getaffinity(0))
    specs = [
        ProcessSpec(
            rank,
            command,
            rank_environment(os.environ, {}, Placement(rank, world, rank, world, 0, _LOCAL, port), None, cores),
            Path.cwd(),
            folder.log(rank),
        )
        for rank in range(world)
    ]
    try:
        processes.start(specs)
        yield processes
    finally:
        processes.kill()


@contextmanager
def _on_nodes(config: Config, command: tuple[str, ...], folder: EvaluationFolder, address: str) -> Iterator[Ranks]:
    from launch.nodes.gang import Gang
    from pipelines.cluster import ray_cluster

    with ray_cluster(address), Gang(config) as gang:
        run = config.run.model_copy(update={"device": gang.device.kind})  # the same for all ranks
        write_atomic(folder.config, dump(config.model_copy(update={"run": run})))
        gang.start(command, Path.cwd(), folder.path)
        yield gang


def _wait(processes: Ranks, folder: EvaluationFolder, world: int, on_tokens: Callable[[int], None]) -> None:
    told = 0
    while len(ends := processes.ended()) < world:
        failed = sorted((end.time, end.rank) for end in ends.values() if end.code)
        if failed:
            _raise(folder, failed[0][1])
        try:
            now = int(folder.progress.read_text())
        except (OSError, ValueError):
            now = told
        on_tokens(now - told)
        told = now
        time.sleep(_POLL_SECONDS)
    failed = sorted((end.time, end.rank) for end in ends.values() if end.code)
    if failed:
        _raise(folder, failed[0][1])


def _raise(folder: EvaluationFolder, rank: int) -> None:
    """Raise the error that the rank reported; if it reported none, one with the end of its log."""
    failure = Failure.read(folder.failure(rank))
    if failure is None:
        said = folder.log(rank).read_text(errors="replace").strip().splitlines()[-5:]
        raise LaunchError(f"rank {rank} of the evaluation ended without a result:\n" + "\n".join(said))
    is_ours = failure.code is not ExitCode.INTERNAL and not failure.traceback
    error = LaunchError(failure.reason if is_ours else f"{failure.summary}\n{failure.detail}")
    error.exit_code = failure.code
    raise error
