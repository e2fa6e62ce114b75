"""`python -m tests.scale.peaks`: memory of a device as planned, and at the peak of a step of the engine that trains.

The engine runs on the meta device, where every tensor has a size and no memory; the most bytes that are in use at a
time are the peak.  Writes the table in docs/scaling.md.
"""

import gc
from dataclasses import dataclass, field
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.files import write_atomic
from brt_dist.planning.device_memory import RankMemory, rank_memory
from brt_dist.planning.execution import WITHOUT_KERNELS
from brt_dist.planning.model_sizes import ModelSizes
from tests.scale.activations import Operations, Peak
from tests.scale.live import always_on_meta
from tests.scale.meta import meta_world
from tests.scale.page import PAGE, PEAKS, with_table

DELTA, LINEAR = {"delta": {"layers": None}}, {"linear": {"layers": None}}


@dataclass(frozen=True)
class Case:
    """A model on a layout: changes of a model of four layers, the last but one recurrent, on one rank."""

    layout: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    precision: str = "bf16"
    segment: int = 2048
    rank: int = 0

    @property
    def config(self) -> Config:
        layout = {"micro_batch": 1, **self.layout}
        width = self.model.get("width", 1024)
        model = {"layers": 4, "width": width, "heads": width // 128, "head_dim": 128, "window": 512, "dropout": 0.0,
                 "vocab_size": 32768, "mixers": {"window": {}, "recurrent": {"layers": [-2]}},
                 "ffns": {"relu": {"width": 4 * width}}}  # fmt: skip
        return Config.model_validate(
            {
                "model": model | self.model,
                "data": {"dataset": "unused", "segment": self.segment,
                         "streams": 2 * layout.get("data", 1) * layout["micro_batch"] * layout.get("pipeline", 1)},
                "parallel": layout,
                "optimizer": {"name": self.optimizer},
                "run": {"directory": "unused", "steps": 5000, "precision": self.precision},
            }
        )  # fmt: skip


CASES = {
    "one rank": Case(),
    "micro-batch 4": Case({"micro_batch": 4}),
    "micro-batch 4, recompute attention": Case({"micro_batch": 4, "recompute": "attention"}),
    "micro-batch 4, recompute layer": Case({"micro_batch": 4, "recompute": "layer"}),
    "data 4": Case({"data": 4}),
    "data 4, ZeRO-2": Case({"data": 4, "zero_stage": 2}),
    "data 4, ZeRO-3": Case({"data": 4, "zero_stage": 3}),
    "data 2, float32": Case({"data": 2}, precision="fp32"),
    "tensor 2": Case({"tensor": 2}),
    "tensor 2, sequence parallel": Case({"tensor": 2, "sequence_parallel": True, "micro_batch": 2}),
    "tensor 4, sequence parallel, width 2048": Case(
        {"tensor": 4, "sequence_parallel": True, "micro_batch": 2}, {"width": 2048}
    ),
    "pipeline 2": Case({"pipeline": 2}),
    "pipeline 2, last stage": Case({"pipeline": 2}, rank=1),
    "pipeline 4, tensor 2": Case({"pipeline": 4, "tensor": 2, "micro_batch": 2}),
    "pipeline 4, data 2, recompute layer": Case({"pipeline": 4, "data": 2, "recompute": "layer", "micro_batch": 4}),
    "Lion": Case({"micro_batch": 2}, optimizer="lion"),
    "segment 4096": Case(segment=4096),
    "window 256": Case({"micro_batch": 2}, {"window": 256}),
    "width 2048": Case({"micro_batch": 2}, {"width": 2048}),
    "dual cell, LSTM gate": Case(
        {"micro_batch": 2}, {"mixers": {"window": {}, "recurrent": {"cell": "dual", "gate": "lstm"}}}
    ),
    "rotary positions": Case({"micro_batch": 2}, {"mixers": {"window": {"positions": "rotary"}}}),
    "delta rule": Case({"micro_batch": 2}, {"mixers": DELTA}),
    "delta rule, recompute layer": Case({"micro_batch": 2, "recompute": "layer"}, {"mixers": DELTA}),
    "linear attention": Case({"micro_batch": 2}, {"mixers": LINEAR}),
}


def planned(case: Case) -> RankMemory:
    """Memory of the rank of a case, as planned."""
    config = case.config
    stage = case.rank * config.parallel.pipeline // config.parallel.world_size
    return rank_memory(ModelSizes(config), config.parallel, stage, WITHOUT_KERNELS)


def measured(case: Case) -> int:
    """Bytes at the peak of the second step, when the optimizer has its state."""
    with meta_world(case.config, case.rank) as world, Peak(Operations()) as peak, world.engine() as engine:
        engine.train_step(world.inputs(1), 1e-3)
        gc.collect()
        peak.bytes = 0
        engine.train_step(world.inputs(2), 1e-3)
        return peak.bytes - sum(one.nbytes for one in always_on_meta(engine))


def row(name: str, planned_bytes: int, measured_bytes: int) -> str:
    """A row of the table."""
    ratio = planned_bytes / measured_bytes - 1
    return f"| {name} | {planned_bytes / 1e6:,.0f} MB | {measured_bytes / 1e6:,.0f} MB | {ratio:+.1%} |"


def main() -> None:
    lines = ["| | planned | at the peak | |", "|---|---:|---:|---:|"]
    for name, case in CASES.items():
        lines.append(row(name, planned(case).device, measured(case)))
        print(lines[-1], flush=True)
    write_atomic(PAGE, with_table(PAGE.read_text(), lines, PEAKS))


if __name__ == "__main__":
    main()
