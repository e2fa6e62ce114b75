"""Ranks for tests: processes that are started once and then run one case after another.

Starting a rank costs ten seconds of imports; a case costs one.  Processes are spawned (never forked: forked ones
deadlock under gloo), and every case gets process groups of its own through a fresh file store.
"""

import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASE_TIMEOUT_SECONDS = 240


class RankPool:
    """Up to `size` ranks on this machine.  A context manager; leaving it ends the processes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._folder = tempfile.TemporaryDirectory()
        self._processes: list[Any] = []

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._tasks = [context.Queue() for _ in range(self._size)]
        self._results: Any = context.Queue()
        self._processes = [
            context.Process(target=_serve, args=(rank, tasks, self._results), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        before = dict(os.environ)
        os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONWARNINGS="ignore")
        try:
            for process in self._processes:
                process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(rank, store_path, *arguments)` on ranks 0..world-1; their results in the order of ranks.

        `function` must be importable.  The first failure of a rank is raised with its traceback.
        """
        if not self._processes:
            self._start()
        store = str(Path(self._folder.name) / uuid.uuid4().hex)
        for tasks in self._tasks[:world]:
            tasks.put((function, store, arguments))
        results: dict[int, Any] = {}
        for _ in range(world):
            rank, value, error = self._results.get(timeout=CASE_TIMEOUT_SECONDS)
            if error:
                self._stop()  # the others may hang in a collective; the next case starts anew
                raise AssertionError(f"rank {rank} of {world} failed in {function.__name__}:\n{error}")
            results[rank] = value
        return [results[rank] for rank in range(world)]


def _serve(rank: int, tasks: Any, results: Any) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        function, store, arguments = tasks.get()
        _forget_numbers()
        try:
            results.put((rank, function(rank, store, *arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
        gc.collect()  # engines are full of cycles, and each keeps the threads of its process groups


def _end_with_parent() -> None:
    """A rank that waits in a collective for ranks that are gone would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _forget_numbers() -> None:
    """Set back DeepSpeed's counters of parameters and modules.

    ZeRO-3 compares these numbers over ranks, but they count per process, and some ranks have run more cases.
    """
    parameters = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    modules = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    if parameters and modules:
        parameters.Init.param_id = 0
        (counter,) = modules.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
        counter[0] = 0
