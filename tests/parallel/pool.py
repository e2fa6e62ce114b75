"""Ranks for tests: ordinary processes that start at once, because their imports were done before.

Importing torch, DeepSpeed and Megatron costs ten seconds; a case costs one.  One server process does the imports, and
every rank of every case is forked from it: it has no process groups and no threads then, so nothing is inherited but
the modules, and nothing outlives a case.
"""

import multiprocessing
import os
import pickle
import queue
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASE_TIMEOUT_SECONDS = 240
_PRELOADED = ["brt_dist.training.build", "pytest", "tests.parallel.matrix", "tests.parallel.kills"]
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}


class RankPool:
    """Starts ranks on this machine; a context manager, which ends what is left of them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._processes: list[Any] = []

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Processes that run `function(rank, store_path, *arguments)` for ranks 0..world-1; ended by :meth:`stop`."""
        store = str(Path(self._folder.name) / uuid.uuid4().hex)
        with pytest.MonkeyPatch.context() as patch:  # for the server, which starts with the first process
            for name, value in _ENVIRONMENT.items():
                patch.setenv(name, value)
            self._processes = [
                self._context.Process(target=_main, args=(function, rank, store, *arguments)) for rank in range(world)
            ]
            for process in self._processes:
                process.start()
        return self._processes

    def stop(self) -> list[int]:
        """Kill what still runs of the last start; the exit codes."""
        for process in self._processes:
            process.kill()
            process.join()
        codes = [process.exitcode for process in self._processes]
        self._processes = []
        return codes

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(rank, store_path, *arguments)` on ranks 0..world-1; their results in the order of ranks.

        `function` must be importable.  The first failure of a rank is raised with its traceback.
        """
        answers = self._context.Queue()
        self.start(world, _answer, answers, function, *arguments)
        results: dict[int, Any] = {}
        deadline = time.monotonic() + CASE_TIMEOUT_SECONDS
        try:
            while len(results) < world:
                rank, value, error = self._next(answers, deadline)
                if error:
                    raise AssertionError(f"rank {rank} of {world} failed in {function.__name__}:\n{error}")
                results[rank] = pickle.loads(value)
        finally:
            self.stop()
            answers.close()
        return [results[rank] for rank in range(world)]

    def _next(self, answers: Any, deadline: float) -> tuple[int, Any, str | None]:
        while True:
            try:
                answer: tuple[int, Any, str | None] = answers.get(timeout=1.0)
                return answer
            except queue.Empty:
                dead = [rank for rank, process in enumerate(self._processes) if process.exitcode]
                if dead:
                    raise AssertionError(f"rank {dead[0]} ended with {self._processes[dead[0]].exitcode}") from None
                if time.monotonic() > deadline:
                    raise AssertionError(f"no answer of all ranks for {CASE_TIMEOUT_SECONDS} s") from None


def _main(function: Callable[..., Any], rank: int, store: str, *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function(rank, store, *arguments)


def _answer(rank: int, store: str, answers: Any, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        # pickled here: tensors in a queue are handles to memory of this process, which is about to end
        answers.put((rank, pickle.dumps(function(rank, store, *arguments)), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    answers.close()
    answers.join_thread()
    os._exit(0)  # threads of process groups that a failed case left would abort the interpreter's own way out


def _end_with_parent() -> None:
    """A rank that waits in a collective for ranks that are gone would stay forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
