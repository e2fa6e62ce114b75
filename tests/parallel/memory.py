"""`python -m tests.parallel.memory`: memory of ranks as planned, and as real processes need it, on this machine's CPUs.

Each case trains two steps, twice: under torch's profiler, which tells each allocation of a tensor, and without it, for
the memory of the process.  Writes docs/results/memory_processes.json and the table in docs/scaling.md; cases that are
named after the command are measured anew, the others are kept.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.files import write_atomic
from brt_dist.planning.device_memory import RankMemory
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from tests.parallel.measured_rank import process_at_peak, tensors_at_peak
from tests.parallel.pool import RankPool
from tests.scale.page import PAGE, PROCESSES, with_table

RESULTS = PAGE.with_name("results") / "memory_processes.json"
BUCKET = 1_000_000  # a larger one is allocated whole, but no process touches what it does not fill
RECURRENT = {"window": {}, "recurrent": {"layers": [-2], "states": 128}}


@dataclass(frozen=True)
class Case:
    """A model of four layers on a layout.

    Attributes:
        layout: as in the config.
        model: changes of the model.
        is_wide: weights need most of the memory; else activations do.
    """

    layout: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    precision: str = "fp32"
    is_wide: bool = False

    @property
    def config(self) -> Config:
        width, segment, streams = (512, 128, 1) if self.is_wide else (128, 1024, 8)
        layout = {"micro_batch": streams, "zero": {"reduce_bucket": BUCKET}, **self.layout}
        if layout.get("zero_stage") == 0:
            del layout["zero"]
        model = {"layers": 4, "width": width, "heads": width // 64, "head_dim": 64, "window": 128, "dropout": 0.0,
                 "vocab_size": 2048, "mixers": RECURRENT, "ffns": {"relu": {"width": 4 * width}}}  # fmt: skip
        streams = layout.get("data", 1) * layout["micro_batch"] * layout.get("pipeline", 1)
        return Config.model_validate(
            {
                "model": model | self.model,
                "data": {"dataset": "unused", "segment": segment, "streams": streams},
                "parallel": layout,
                "optimizer": {"name": self.optimizer},
                "run": {"directory": "unused", "steps": 5000, "precision": self.precision},
            }
        )


CASES = {
    "one rank": Case(),
    "tensor 2": Case({"tensor": 2}),
    "pipeline 2": Case({"pipeline": 2}),
    "data 2, ZeRO-1": Case({"data": 2}, is_wide=True),
    "data 2, ZeRO-1, bf16": Case({"data": 2}, precision="bf16", is_wide=True),
    "data 2, ZeRO-2, bf16": Case({"data": 2, "zero_stage": 2}, precision="bf16", is_wide=True),
    "data 2, ZeRO-3, bf16": Case({"data": 2, "zero_stage": 3}, precision="bf16", is_wide=True),
    "recompute attention": Case({"recompute": "attention"}),
    "recompute layer": Case({"recompute": "layer", "micro_batch": 32}),
    "one rank, bf16": Case(precision="bf16"),
    "data 2, ZeRO-0": Case({"data": 2, "zero_stage": 0}, is_wide=True),
    "data 2, ZeRO-2": Case({"data": 2, "zero_stage": 2}, is_wide=True),
    "data 2, ZeRO-3": Case({"data": 2, "zero_stage": 3}, is_wide=True),
    "data 2, ZeRO-2, offloaded": Case(
        {"data": 2, "zero_stage": 2, "zero": {"reduce_bucket": BUCKET, "offload_optimizer": "cpu"}},
        precision="bf16",
        is_wide=True,
    ),
    "data 4, ZeRO-1": Case({"data": 4}, is_wide=True),
    "Lion, bf16": Case(optimizer="lion", precision="bf16", is_wide=True),
    "tensor 2, wide": Case({"tensor": 2}, is_wide=True),
    "tensor 2, sequence parallel, bf16": Case({"tensor": 2, "sequence_parallel": True}, precision="bf16"),
    "pipeline 2, wide, bf16": Case({"pipeline": 2}, precision="bf16", is_wide=True),
    "pipeline 2, streams in host memory": Case({"pipeline": 2, "stream_memory": "host"}),
    "pipeline 4, recompute layer": Case({"pipeline": 4, "recompute": "layer"}),
    "tensor 2, pipeline 2": Case({"tensor": 2, "pipeline": 2}),
    "tensor 2, data 2": Case({"tensor": 2, "data": 2}, is_wide=True),
    "feedback": Case(model={"feedback": True}),
    "delta rule": Case(model={"mixers": {"delta": {"layers": None}}}),
    "linear attention, tensor 2": Case({"tensor": 2}, {"mixers": {"linear": {"layers": None}}}),
    "nprf_rpe": Case({"micro_batch": 2}, {"mixers": {"nprf_rpe": {"layers": None}}}),
    "bst": Case({"micro_batch": 2}, {"mixers": {"window": {}, "bst": {"layers": [-2]}}}),
    "switchhead and sigma_moe": Case(
        {"micro_batch": 1},
        {"mixers": {"switchhead": {"layers": None}}, "ffns": {"sigma_moe": {"experts": 8, "chosen": 4}}},
    ),
}


def planned(given: Config) -> list[RankMemory]:
    """Memory of a rank of each stage."""
    return list(Planner(given, device_spec("cpu")).memory(given.parallel))


def measured(pool: RankPool, given: Config, libraries: int) -> dict[str, Any]:
    """By rank: most bytes of tensors, and of the whole process; and those of its libraries."""
    world = given.parallel.world_size
    tensors, process = (pool.run(world, peak, given) for peak in (tensors_at_peak, process_at_peak))
    return {"tensors": tensors, "process": process, "libraries": libraries}


def libraries(pool: RankPool, world: int, precision: str) -> int:
    """Bytes of a process that trains a tiny model in this precision on this many data parallel ranks."""
    sizes = {"width": 16, "heads": 1, "head_dim": 16, "window": 16, "vocab_size": 64, "layers": 2}
    sizes |= {"mixers": {"window": {}, "recurrent": {"layers": [0], "states": 8}}, "ffns": {"relu": {"width": 16}}}
    given = Case({"data": world, "micro_batch": 1, "zero": {"reduce_bucket": 2000}}, sizes, precision=precision).config
    return max(pool.run(world, process_at_peak, given))


def rows(results: dict[str, Any]) -> list[str]:
    """The lines of the table: of each case the stage whose ranks need most, and the fullest of its ranks."""
    head = ["| | ranks | planned | tensors | | process | |", "|---|---:|---:|---:|---:|---:|---:|"]
    return head + [row(name, results) for name in CASES if name in results]


def row(name: str, results: dict[str, Any]) -> str:
    """The line of a case."""
    plan, tensors, process = beside(name, results)
    ranks = CASES[name].config.parallel.world_size
    return (
        f"| {name} | {ranks} | {plan / 1e6:,.0f} MB | {tensors / 1e6:,.0f} MB | {plan / tensors - 1:+.1%} | "
        f"{process / 1e6:,.0f} MB | {plan / process - 1:+.1%} |"
    )


def beside(name: str, results: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes of a case: planned, of tensors, and of the process without `libraries`."""
    given, found = CASES[name].config, results[name]
    stage, plan = fullest(given)
    tensors, process = (max(ranks_of(stage, given, found[key])) for key in ("tensors", "process"))
    return plan, tensors, process - found["libraries"]


def fullest(given: Config) -> tuple[int, int]:
    """The stage whose ranks need most, and its bytes, in host memory too."""
    sizes = [one.device + one.host for one in planned(given)]
    stage = max(range(len(sizes)), key=sizes.__getitem__)
    return stage, sizes[stage]


def ranks_of(stage: int, given: Config, of_ranks: list[int]) -> list[int]:
    """What the ranks of a stage have."""
    each = len(of_ranks) // given.parallel.pipeline
    return of_ranks[stage * each : (stage + 1) * each]


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    besides: dict[tuple[int, str], int] = {}
    with RankPool() as pool:
        for name in sys.argv[1:] or CASES:
            given = CASES[name].config
            kind = given.parallel.world_size, given.run.precision
            if kind not in besides:
                besides[kind] = libraries(pool, *kind)
            results[name] = measured(pool, given, besides[kind])
            write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
            print(row(name, results), flush=True)
    write_atomic(PAGE, with_table(PAGE.read_text(), rows(results), PROCESSES))


if __name__ == "__main__":
    main()
