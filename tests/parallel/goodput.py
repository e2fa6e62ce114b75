"""`python -m tests.parallel.goodput`: a run that is killed again and again, beside the simulated one.

Steps sleep, so that they take as long on a busy machine.  The simulated run has the same seconds between failures, and
is fed with what steps, saves and restarts took.  Writes docs/results/simulated_failures.json and the table in
docs/scaling.md.
"""

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.files import write_atomic
from brt_dist.planning.simulator.goodput import Saving, shares
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents
from tests.scale.page import GOODPUT, PAGE, with_table

RESULTS = PAGE.with_name("results") / "simulated_failures.json"
STEP = 0.2  # seconds of sleep
LAYOUTS: dict[str, dict[str, Any]] = {"data 2": {"data": 2}, "tensor 2": {"tensor": 2}, "pipeline 2": {"pipeline": 2}}
EVERY = {"data 2": 5, "tensor 2": 10, "pipeline 2": 20}  # steps between checkpoints
BETWEEN, KILLS = 12.0, 5  # mean seconds between failures; how many


@dataclass(frozen=True)
class Killed:
    """A run that was killed.

    Attributes:
        gaps: seconds from each failure to the next.
        interval: seconds of training between saves.
        stall: seconds for which training stops at a save.
        write: seconds from then until the checkpoint is complete.
        restart: mean seconds from a failure until training continues.
        kept: seconds of training that checkpoints have at the end.
    """

    gaps: list[float]
    interval: float
    stall: float
    write: float
    restart: float
    kept: float

    @property
    def goodput(self) -> float:
        """The share of the time that trained what was kept."""
        return self.kept / sum(self.gaps)

    @property
    def simulated(self) -> float:
        """The same of the simulator."""
        return shares(self.interval, Saving(self.stall, self.write, self.restart), self.gaps).trained


def sleeping_rank(rank: int, store: str, given: Config) -> None:
    """A rank of an attempt; the first notes when each step began."""
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import Engine
    from brt_dist.parallel.layout import Layout, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    layout, run = Layout.of(given, rank), Path(given.run.directory)
    device = choose("cpu", rank)
    initialize(layout, device, 200.0, dist.FileStore(store, layout.world_size))
    train_step: Any = Engine.train_step

    def slowed(engine: Engine, *arguments: Any) -> Any:
        begin = time.monotonic()
        if rank == 0:
            with (run / "begins").open("a") as begins:
                begins.write(f"{begin}\n")
        result = train_step(engine, *arguments)
        time.sleep(max(begin + STEP - time.monotonic(), 0.0))
        return result

    Engine.train_step = slowed  # type: ignore[method-assign]
    events = EventLog(run, 1, enabled=rank == 0)
    with Dataset.open(given.data.dataset) as data:
        build_trainer(given, run, layout, device, events, data, None, StopFlag()).run()


def killed(pool: RankPool, folder: Path, name: str) -> Killed:
    """Kill a run `KILLS` times, and measure it."""
    draw = random.Random(name)
    run = folder / name
    run.mkdir()
    about = {"steps": 100_000, "checkpoint_every": EVERY[name], "keep_checkpoints": 2, "evaluation_steps": 1}
    given = config(documents(folder / f"{name}, data"), run, LAYOUTS[name], run=about)
    gaps, restarts, steps = [], [], []
    for _ in range(KILLS):
        began, before = time.monotonic(), len(_begins(run))
        pool.start(given.parallel.world_size, sleeping_rank, given)
        time.sleep(draw.expovariate(1 / BETWEEN))
        pool.stop()
        gaps.append(time.monotonic() - began)
        begins = _begins(run)[before:]
        if begins:
            restarts.append(begins[0] - began)
        steps += [after - one for one, after in pairwise(begins)]
    saves = [one for one in _events(run) if one["event"] == "checkpoint"]
    step, stall = fmean(steps), fmean(one["stall_seconds"] for one in saves)
    write = fmean(one["seconds"] for one in saves) - stall
    kept = step * max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))
    return Killed(gaps, step * EVERY[name], stall, write, fmean(restarts), kept)


def libraries_are_loaded(rank: int, store: str) -> None:
    """Done as soon as a rank can start."""


def rows(results: dict[str, Killed]) -> list[str]:
    """The lines of the table."""
    lines = [
        "| | kills | between saves | stall | write | restart | goodput | simulated |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        lines.append(
            f"| {name} | {len(one.gaps)} in {sum(one.gaps):.0f} s | {one.interval:.1f} s | {one.stall:.2f} s | "
            f"{one.write:.2f} s | {one.restart:.1f} s | {one.goodput:.1%} | {one.simulated:.1%} |"
        )
    return lines


def committed() -> dict[str, Killed]:
    """What the command found."""
    return {name: Killed(**one) for name, one in json.loads(RESULTS.read_text()).items()}


def _begins(run: Path) -> Sequence[float]:
    path = run / "begins"
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    results = {}
    with RankPool() as pool, tempfile.TemporaryDirectory() as folder:
        pool.run(1, libraries_are_loaded)  # else the first attempt would wait for it
        for name in LAYOUTS:
            results[name] = killed(pool, Path(folder), name)
            print(rows({name: results[name]})[-1], flush=True)
            write_atomic(RESULTS, json.dumps({name: asdict(one) for name, one in results.items()}, indent=1) + "\n")
    write_atomic(PAGE, with_table(PAGE.read_text(), rows(results), GOODPUT))


if __name__ == "__main__":
    main()
