"""What large layouts cost, counted on rank 0 with weights of full size on the meta device: for docs/scaling.md.

One micro-batch is run.  Calls over "tensor" and "pipe" groups are made for each micro-batch, the others once a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from brt_dist.config.schema import Config
from brt_dist.planning.memory import Needed, needed_by, plan_of
from tests.scale.meta import meta_world
from tests.scale.recorder import Collective
from tests.scale.whole import with_micro_batches

# name: recipe whose model and streams it has, and changes of its layout
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B, data 8": ("scale_7b", {"tensor": 1, "data": 8, "sequence_parallel": False}),
    "7B, tensor 8": ("scale_7b", {"tensor": 8, "data": 1}),
    "70B, tensor 8, pipeline 8, data 8": ("scale_70b", {}),
}
_GROUPS = {
    "tensor": "tensor, per micro-batch",
    "pipe": "to and from the next stage, per micro-batch",
    "data": "data, per step",
    "tied": "copies of the token embedding, per step",
    "world": "all, all stages or all tensor ranks of a stage, per step",
}


@dataclass(frozen=True)
class Budget:
    """What a rank of a layout does and keeps.

    Attributes:
        calls: collectives by group, and their bytes.
        host_reads: values of the device that the host waits for, in a step.
        needed: what the rank that keeps most keeps, as planned.
        stream: bytes of the memory of one stream.
        checkpoint: bytes of weights and optimizer state, in float32.
        memory: bytes of the memory of all streams.
    """

    calls: dict[str, tuple[int, int]]
    host_reads: int
    needed: Needed
    stream: int
    checkpoint: int
    memory: int


def planned(config: Config, changes: Mapping[str, Any]) -> Config:
    """A recipe on another layout."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=dict(changes))})


def budget(config: Config) -> Budget:
    """Counts a step."""
    with meta_world(with_micro_batches(config, 1)) as world, world.engine() as engine, world.recorder(engine) as record:
        world.recorded_step(engine, record, 1)
    calls = {name: _sum([call for call in record.collectives if _group(call) == name]) for name in _GROUPS}
    return Budget(calls=calls, host_reads=len(record.host_reads), **sizes(config))


def sizes(config: Config) -> dict[str, Any]:
    """The part of a budget that follows from the config."""
    model = config.model
    fields = [field for index in range(model.layers) for field in model.mixer_of(index).memory(model)]
    itemsize = 2 if config.run.precision == "bf16" else 4
    stream = sum(field.local_bytes(1, False, itemsize) for field in fields)
    stages = [needed_by(config, stage) for stage in range(config.parallel.pipeline)]
    return {
        "needed": max(stages, key=lambda stage: stage.device),
        "stream": stream,
        "checkpoint": 12 * plan_of(config).parameters,  # weights and both moments of AdamW
        "memory": stream * config.data.streams,
    }


def table(budgets: Mapping[str, Budget]) -> list[str]:
    """The table, in Markdown."""
    rows = [["", *budgets], ["---", *("---:" for _ in budgets)]]
    for group, label in _GROUPS.items():
        rows.append([f"calls and GB: {label}", *(_calls(one.calls[group]) for one in budgets.values())])
    rows.append(["host reads per step", *(str(one.host_reads) for one in budgets.values())])
    rows += size_rows({name: vars(one) for name, one in budgets.items()})
    return [f"| {' | '.join(row)} |" for row in rows]


def size_rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The rows of the table that follow from the configs."""
    given = list(found.values())
    return [
        ["parameters of a rank, millions", *(f"{one['needed'].parameters / 1e6:,.0f}" for one in given)],
        ["device memory kept, GB", *(f"{one['needed'].device / 1e9:.1f}" for one in given)],
        ["host memory kept, GB", *(f"{one['needed'].host / 1e9:.1f}" for one in given)],
        ["memory of one stream, MB", *(f"{one['stream'] / 1e6:,.0f}" for one in given)],
        ["checkpoint without memory, GB", *(f"{one['checkpoint'] / 1e9:,.0f}" for one in given)],
        ["memory of all streams, GB", *(f"{one['memory'] / 1e9:,.0f}" for one in given)],
    ]


def _group(call: Collective) -> str | None:
    if call.ranks == 1 or call.dtype == torch.int32:  # nothing moves; stages tell each other shapes once
        return None
    if call.op in ("send", "recv"):
        return "pipe"
    return call.group if call.group in ("data", "tensor", "tied") else "world"


def _sum(calls: list[Collective]) -> tuple[int, int]:
    return len(calls), sum(call.bytes for call in calls)


def _calls(found: tuple[int, int]) -> str:
    count, size = found
    return f"{count}, {size / 1e9:.3g}" if count else "-"
