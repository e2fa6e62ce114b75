"""Writing shards as Ray tasks, one task per shard."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from brt_dist.data.format import TOKENIZER_FILE, ShardRecord, shard_name
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.errors import DataError, LaunchError
from pipelines.selection import hash_shard
from pipelines.shard_contents import ShardContents
from pipelines.shards import ShardSettings, write_shard

TASK_RETRIES = 10  # times that a task may lose its worker


Work: TypeAlias = Callable[[Path, ShardContents, ShardSettings], Any]


def run_tasks(
    folder: Path,
    settings: ShardSettings,
    at_once: int,
    work: Work,
    all_contents: Iterator[ShardContents],
    finished: Callable[[int, Any], None],
) -> None:
    """Do `work` (`write` or `hash_documents`) for each shard.

    At most `at_once` are in progress at a time, so the list of shards is never entirely in memory.  A task whose
    worker is killed runs again.

    Args:
        finished: called with the number of a shard and its result, in any order.

    Raises:
        DataError: a task reports a problem.
        LaunchError: a task loses every worker that it gets.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_answered)
    running: dict[Any, int] = {}
    try:
        while True:
            while len(running) < at_once and (contents := next(all_contents, None)) is not None:
                running[task.remote(work, folder, contents, settings)] = contents.number
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayTaskError:
                raise  # a bug of ours, with the worker's traceback
            except ray.exceptions.RayError as error:
                raise LaunchError(
                    f"{shard_name(number)}: its worker was lost {TASK_RETRIES + 1} times ({type(error).__name__}). "
                    "If it ran out of memory, use fewer --workers; run the build again to resume"
                ) from None
            if isinstance(result, str):
                raise DataError(result)
            finished(number, result)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def write(folder: Path, contents: ShardContents, settings: ShardSettings) -> ShardRecord:
    """Write a shard with the tokenizer of the folder."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per task
    return write_shard(folder, contents, load_tokenizer(folder / TOKENIZER_FILE), settings)


def hash_documents(folder: Path, contents: ShardContents, settings: ShardSettings) -> int:
    """Hash the documents of a shard."""
    return hash_shard(folder, contents, settings.text_field)


def _answered(work: Work, folder: Path, contents: ShardContents, settings: ShardSettings) -> Any:
    """What a Ray worker runs.  Expected errors come back as their message: they must not be retried."""
    try:
        return work(folder, contents, settings)
    except DataError as error:
        return str(error)
