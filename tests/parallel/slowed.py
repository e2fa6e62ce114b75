"""`python -m tests.parallel.slowed`: pipelines of real processes whose stages sleep, beside the simulated ones.

Forward and backward passes of each stage sleep for a given time, far longer than they compute, so the comparison also
holds on a busy machine.  Writes docs/results/simulated_pipelines.json and the table in docs/scaling.md;
if cases are named after the command, only theirs.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

from brt_dist.config.schema import Config
from brt_dist.files import write_atomic
from brt_dist.planning.simulator.disturbance import Disturbance
from brt_dist.planning.simulator.instructions import Kind
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import simulate_step
from tests.parallel.pool import RankPool
from tests.scale.page import PAGE, SLOWED, with_table
from tests.scale.settings import small

RESULTS = PAGE.with_name("results") / "simulated_pipelines.json"
FORWARD, BACKWARD = 0.2, 0.4  # seconds of sleep
_WORK = (Kind.FORWARD, Kind.BACKWARD)  # an update waits for the agreement of all ranks

Executed: TypeAlias = list[tuple[str, float, float]]
"""instruction, and when it began and ended, of one clock of the machine"""


@dataclass(frozen=True)
class Case:
    """A pipeline.

    Attributes:
        stages, micro_batches, replicas: of it.
        slow: how many times as long stages take, by replica and stage.
    """

    stages: int
    micro_batches: int
    slow: tuple[tuple[tuple[int, int], float], ...] = ()
    replicas: int = 1

    @property
    def config(self) -> Config:
        layout = {"pipeline": self.stages, "data": self.replicas}
        return small(layout, "fp32", micro_batches=self.micro_batches)


CASES = {
    "2 stages, 4 micro-batches": Case(2, 4),
    "2 stages, the first half as fast": Case(2, 4, (((0, 0), 2.0),)),
    "2 stages, the last half as fast": Case(2, 4, (((0, 1), 2.0),)),
    "4 stages, 4 micro-batches": Case(4, 4),
    "4 stages, 8 micro-batches": Case(4, 8),
    "4 stages, the second half as fast": Case(4, 4, (((0, 1), 2.0),)),
    "4 stages, the last half as fast": Case(4, 4, (((0, 3), 2.0),)),
    "2 times 2 stages, one half as fast": Case(2, 4, (((1, 0), 2.0),), replicas=2),
}


@dataclass(frozen=True)
class Outcome:
    """Of a step.

    Attributes:
        seconds: from its first instruction to its last.
        idle: seconds that each rank does not compute, replica by replica, stage by stage.
    """

    seconds: float
    idle: list[float]

    @property
    def bubble(self) -> float:
        """The share of the step that ranks do not compute."""
        return sum(self.idle) / len(self.idle) / self.seconds


def sleeping_rank(
    rank: int, store: str, given: Config, slow: dict[tuple[int, int], float]
) -> tuple[int, int, Executed]:
    """A rank whose second step is watched: its replica, stage, and what it executed."""
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, initialize
    from tests.scale.world import step_input

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 200.0, dist.FileStore(store, layout.world_size))
    engine = build_engine(given, layout, device)
    factor = slow.get((layout.data_rank, layout.stage), 1.0)
    executed: Executed = []
    engine.train_step(step_input(given, layout, 1), 1e-3)  # stages tell each other shapes
    _slow(engine._deepspeed, {"ForwardPass": FORWARD * factor, "BackwardPass": BACKWARD * factor}, executed)
    dist.barrier()
    engine.train_step(step_input(given, layout, 2), 1e-3)
    dist.barrier()
    return layout.data_rank, layout.stage, executed


def _slow(deepspeed: Any, seconds: dict[str, float], executed: Executed) -> None:
    """Sleep with each instruction that an engine executes, and note when it was executed."""

    def slowed(execute: Any, name: str) -> Any:
        def call(self: Any, **arguments: Any) -> Any:
            begin = time.monotonic()
            result = execute(self, **arguments)
            time.sleep(max(begin + seconds.get(name, 0.0) - time.monotonic(), 0.0))
            executed.append((name, begin, time.monotonic()))
            return result

        return call

    table = deepspeed._INSTRUCTION_MAP.items()
    deepspeed._INSTRUCTION_MAP = {kind: slowed(execute, kind.__name__) for kind, execute in table}


def measured(pool: RankPool, case: Case) -> Outcome:
    """A step of real processes."""
    found = pool.run(case.stages * case.replicas, sleeping_rank, case.config, dict(case.slow))
    begin = min(executed[0][1] for *_, executed in found)
    seconds = max(executed[-1][2] for *_, executed in found) - begin
    idle = []
    for *_, executed in sorted(found, key=lambda one: one[:2]):
        idle.append(seconds - sum(end - begin for name, begin, end in executed if Kind(name) in _WORK))
    return Outcome(seconds, idle)


def simulated(case: Case) -> Outcome:
    """The same step, simulated: with the sleeps, and with transfers, reductions and updates that take no time."""
    stages = [StageSeconds(FORWARD, BACKWARD)] * case.stages
    step = simulate_step(stages, case.micro_batches, case.replicas, Disturbance(stragglers=dict(case.slow)))
    idle = []
    for replica in range(case.replicas):
        for stage in range(case.stages):
            mine = (i for i in step.intervals if (i.replica, i.stage) == (replica, stage) and i.kind in _WORK)
            idle.append(step.seconds - sum(interval.seconds for interval in mine))
    return Outcome(step.seconds, idle)


def rows(results: dict[str, Outcome]) -> list[str]:
    """The lines of the table."""
    lines = [
        "| | step | simulated | bubble | simulated | idle by stage | simulated |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for name, real in results.items():
        model = simulated(CASES[name])
        idle = [", ".join(f"{seconds:.1f}" for seconds in one.idle) for one in (real, model)]
        lines.append(
            f"| {name} | {real.seconds:.2f} s | {model.seconds:.2f} s | {real.bubble:.1%} | {model.bubble:.1%} | "
            f"{idle[0]} s | {idle[1]} s |"
        )
    return lines


def committed() -> dict[str, Outcome]:
    """What the command found."""
    return {name: Outcome(**one) for name, one in json.loads(RESULTS.read_text()).items()}


def main() -> None:
    results = committed() if RESULTS.exists() else {}
    with RankPool() as pool:
        for name in sys.argv[1:] or CASES:
            results[name] = measured(pool, CASES[name])
            print(rows({name: results[name]})[-1], flush=True)
    write_atomic(RESULTS, json.dumps({name: vars(one) for name, one in results.items()}, indent=1) + "\n")
    write_atomic(PAGE, with_table(PAGE.read_text(), rows(results), SLOWED))


if __name__ == "__main__":
    main()
