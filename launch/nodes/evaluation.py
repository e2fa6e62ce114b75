"""Starts the ranks of an evaluation on this node, and waits for what they find."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from brt_dist.config.loading import dump
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode, LaunchError
from brt_dist.eval_worker import EvaluationFolder, EvaluationRequest
from brt_dist.evaluation.score import Score
from brt_dist.failure import Failure
from brt_dist.files import write_atomic
from launch.nodes.agent import NodeAgent
from launch.nodes.environment import Placement, rank_environment
from launch.nodes.processes import ProcessSet, ProcessSpec
from launch.run.python import module_command

_LOCAL = "127.0.0.1"
_POLL_SECONDS = 0.2


def score_on_this_node(
    config: Config, request: EvaluationRequest, on_tokens: Callable[[int], None] = lambda tokens: None
) -> list[Score]:
    """Evaluate in a layout, one process for each of its ranks; they end when this process ends.

    Args:
        config: with the network, the layout, segment and streams.
        request: what to evaluate.
        on_tokens: called now and then with the number of tokens that were predicted since the last call.

    Returns:
        The scores of each place, in their order, for each use of memory.

    Raises:
        BrtError: a rank failed; of the kind that it failed with.
    """
    world, processes = config.parallel.world_size, ProcessSet()
    with tempfile.TemporaryDirectory(prefix="brt-eval-") as place:
        folder = EvaluationFolder(Path(place))
        write_atomic(folder.config, dump(config))
        folder.write(request)
        port, cores = NodeAgent().free_port(_LOCAL), len(os.sched_getaffinity(0))
        specs = [
            ProcessSpec(
                rank,
                tuple(module_command("brt_dist.eval_worker", place)),
                rank_environment(os.environ, {}, Placement(rank, world, rank, world, 0, _LOCAL, port), None, cores),
                Path.cwd(),
                folder.log(rank),
            )
            for rank in range(world)
        ]
        try:
            processes.start(specs)
            _wait(processes, folder, world, on_tokens)
            return [Score.from_json(found) for found in json.loads(folder.results.read_text())]
        finally:
            processes.kill()


def _wait(processes: ProcessSet, folder: EvaluationFolder, world: int, on_tokens: Callable[[int], None]) -> None:
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
    """Raise what the rank says that it failed with; without a word, with the end of its log."""
    failure = Failure.read(folder.failure(rank))
    if failure is None:
        said = folder.log(rank).read_text(errors="replace").strip().splitlines()[-5:]
        raise LaunchError(f"rank {rank} of the evaluation ended without a result:\n" + "\n".join(said))
    is_ours = failure.code is not ExitCode.INTERNAL and not failure.traceback
    error = LaunchError(failure.reason if is_ours else f"{failure.summary}\n{failure.detail}")
    error.exit_code = failure.code
    raise error
