"""`python -m tests.parallel.kills`: kill -9 a rank at chosen moments, continue, and compare with a run never killed.

Prints a table of layouts and moments; exit 1 if anything differs.  A run is 12 steps with a checkpoint every second.
It is killed at one moment after another and continued, as often as it takes; the finished run must equal the
undisturbed run bit for bit.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brt_dist.config.schema import Config
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents, saved

STEPS = 12
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "dp2-zero1": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
}
MOMENTS = (
    "forward", "backward", "optimizer", "before commit", "after commit", "before save", "copied", "in a file",
    "before rename", "before latest", "in removal", "any time",
)  # fmt: skip
# on rank 0 alone, as the others do not do these
_FIRST_RANK = ("before rename", "before latest", "in removal")


@dataclass(frozen=True)
class Kill:
    """When which rank dies: `moment`, at its first occurrence in or after the `offset`-th step of the attempt."""

    moment: str
    rank: int
    offset: int
    seconds: float


class Trap:
    """Counts the steps of this process and kills it when the moment has come."""

    def __init__(self, kill: Kill | None) -> None:
        self.steps = 0
        self._kill = kill

    def spring(self, moment: str) -> None:
        if self._kill is not None and self._kill.moment == moment and self.steps >= self._kill.offset:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str, before: str | None = None, after: str | None = None) -> None:
        """Kill before or after the real method `owner.name` runs."""
        real = getattr(owner, name)

        def method(*arguments: Any, **named: Any) -> Any:
            if before:
                self.spring(before)
            result = real(*arguments, **named)
            if after:
                self.spring(after)
            return result

        setattr(owner, name, method)


def set_traps(trap: Trap, kill: Kill) -> None:
    """Around the real methods of the classes in this process (which is about to die anyway)."""
    import torch

    from brt_dist.checkpoint.saver import Saver
    from brt_dist.checkpoint.storage import FolderStorage
    from brt_dist.checkpoint.tensor_file import TensorFileWriter
    from brt_dist.model.layers import Layer
    from brt_dist.parallel.engine import Engine
    from brt_dist.parallel.stream_memory import StreamMemory

    def count(engine: Any, *arguments: Any) -> Any:
        trap.steps += 1
        return train_step(engine, *arguments)

    train_step: Callable[..., Any] = Engine.train_step
    Engine.train_step = count  # type: ignore[method-assign]
    trap.wrap(Layer, "forward", after="forward")
    trap.wrap(torch.optim.AdamW, "step", after="optimizer")
    trap.wrap(StreamMemory, "commit", "before commit", "after commit")
    trap.wrap(Saver, "save", "before save", "copied")
    trap.wrap(TensorFileWriter, "write", after="in a file")
    trap.wrap(FolderStorage, "publish", "before rename")
    trap.wrap(FolderStorage, "_point_at", "before latest")
    trap.wrap(shutil, "rmtree", "in removal")
    if kill.moment == "any time":

        def strike() -> None:
            time.sleep(kill.seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=strike, daemon=True).start()


def rank_main(rank: int, store: str, given: Config, kill: Kill | None) -> None:
    """One rank of one attempt, to the end of the run or to its death."""
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 60.0, dist.FileStore(store, layout.world_size))
    run = Path(given.run.directory)
    events = EventLog(run, 1, enabled=rank == 0)
    trap = Trap(kill if kill and kill.rank == rank else None)
    with Dataset.open(given.data.dataset) as data:
        trainer = build_trainer(given, run, layout, device, events, data, None, StopFlag())
        if kill is not None and kill.rank == rank:
            set_traps(trap, kill)
            for parameter in trainer.engine.stage.parameters():
                parameter.register_hook(lambda gradient: trap.spring("backward"))
        trainer.run()
        trainer.close()
    events.close()
    finalize()
    os._exit(0)


def attempt(ranks: RankPool, given: Config, kill: Kill | None) -> bool:
    """Whether a rank was killed; the others are then killed too, as a supervisor would.

    AssertionError: a rank ended in another way.
    """
    processes = ranks.start(given.parallel.world_size, rank_main, given, kill)
    try:
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break
            time.sleep(0.02)
        if kill is not None and processes[kill.rank].exitcode is None:
            processes[kill.rank].join(5)  # its peers may have seen its end before us
    finally:
        codes = ranks.stop()
    if all(code == 0 for code in codes):
        return False
    assert kill is not None and codes[kill.rank] == -signal.SIGKILL, f"ranks ended with {codes}; meant: {kill}"
    return True


@dataclass(frozen=True)
class Outcome:
    """kills: by moment; attempts: of all runs; runs: finished and compared; differences: what was not equal."""

    kills: Counter[str]
    attempts: int
    runs: int
    differences: list[str]


def hammer(ranks: RankPool, folder: Path, parallel: dict[str, Any], seed: int) -> Outcome:
    """Kill once at every moment, over as many runs of the layout as it takes, and compare each finished run."""
    draw = random.Random(seed)
    data = documents(folder)

    def settings(run: Path) -> Config:
        run.mkdir()
        about = {"steps": STEPS, "checkpoint_every": 2, "keep_checkpoints": 2}
        return config(data, run, parallel, run=about)

    straight = settings(folder / "straight")
    attempt(ranks, straight, None)
    moments = draw.sample(MOMENTS, len(MOMENTS))
    kills: Counter[str] = Counter()
    attempts = runs = 0
    differences: list[str] = []
    while moments or attempts == 0:
        runs += 1
        given, finished = settings(folder / f"run_{runs}"), False
        while not finished:
            kill = None
            if moments:
                rank = 0 if moments[0] in _FIRST_RANK else draw.randrange(given.parallel.world_size)
                kill = Kill(moments[0], rank, draw.randint(1, 4), draw.uniform(0.2, 1.0))
            attempts += 1
            finished = not attempt(ranks, given, kill)
            if not finished:
                kills[moments.pop(0)] += 1
        differences += [f"run {runs}: {text}" for text in _differences(straight, given)]
    return Outcome(kills, attempts, runs, differences)


def _differences(one: Config, other: Config) -> list[str]:
    runs = [Path(given.run.directory) for given in (one, other)]
    states = [saved(run / "checkpoints") for run in runs]
    found = [key for key in states[0] if states[0][key] != states[1][key]]
    losses = [_losses(run) for run in runs]
    if losses[0] != losses[1] or sorted(losses[0]) != list(range(1, STEPS + 1)):
        found.append("losses")
    return found


def _losses(run: Path) -> dict[int, tuple[float, float]]:
    events = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in events if event["event"] == "step"}


def main() -> int:
    off = total = 0
    print(f"{'layout':10} {'kills':>5} {'attempts':>8} {'runs':>4} {'seconds':>7}  result")
    for seed, (name, parallel) in enumerate(LAYOUTS.items()):
        began = time.perf_counter()
        with RankPool() as ranks, tempfile.TemporaryDirectory() as folder:
            found = hammer(ranks, Path(folder), parallel, seed)
        result = "; ".join(found.differences) or "equal to the bit"
        kills, seconds = sum(found.kills.values()), time.perf_counter() - began
        print(f"{name:10} {kills:5} {found.attempts:8} {found.runs:4} {seconds:7.0f}  {result}", flush=True)
        off += len(found.differences)
        total += kills
    print(f"{total} kills, each layout at: {', '.join(MOMENTS)}")
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
