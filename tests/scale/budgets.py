"""What large layouts cost, counted on rank 0 with weights of full size on the meta device: for docs/scaling.md.

One micro-batch is run.  Calls over "tensor" and "pipe" groups are made for each micro-batch, the others once a step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from brt_dist.config.schema import Config
from brt_dist.planning.memory import needed_by, plan_of
from tests.scale.meta import meta_world
from tests.scale.recorder import Collective
from tests.scale.starting import drawn, loaded
from tests.scale.whole import with_micro_batches

# name: recipe whose model and streams it has, and changes of its layout
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B, data 8": ("scale_7b", {"tensor": 1, "data": 8, "sequence_parallel": False}),
    "7B, tensor 8": ("scale_7b", {"tensor": 8, "data": 1}),
    "70B, tensor 8, pipeline 8, data 8": ("scale_70b", {}),
}
_GROUPS = {
    "tensor": "calls and GB: tensor, per micro-batch",
    "pipe": "calls and GB: to and from the next stage, per micro-batch",
    "data": "calls and GB: data, per step",
    "tied": "calls and GB: copies of the token embedding, per step",
    "world": "calls and GB: all, all stages or all tensor ranks of a stage, per step",
}
_HOST_READS = "host reads per step"
_DRAWN = "values drawn at start, millions"
_LOADED = "weights and optimizer state read at load, GB"
_LOADED_MEMORY = "memory of streams read at load, GB"
_PARAMETERS = "parameters of a rank, millions"
_DEVICE = "device memory kept, GB"
_HOST = "host memory kept, GB"
_STREAM = "memory of one stream, MB"
_CHECKPOINT = "checkpoint, older than `keep_memory`, GB"
_MEMORY = "memory of all streams, GB"
COUNTED = (*_GROUPS.values(), _HOST_READS, _DRAWN, _LOADED, _LOADED_MEMORY)
DERIVED = (_PARAMETERS, _DEVICE, _HOST, _STREAM, _CHECKPOINT, _MEMORY)

# the same rows before the work for scale, where they are known; where from, the page says
BEFORE: dict[str, dict[str, str]] = {
    "7B, data 8": {_HOST_READS: "9", _DRAWN: "7,256", _LOADED: "36", _DEVICE: "142", _CHECKPOINT: "379"},
    "7B, tensor 8": {_HOST_READS: "9", _DRAWN: "7,256", _DEVICE: "91", _CHECKPOINT: "379"},
    "70B, tensor 8, pipeline 8, data 8": {_DRAWN: "9,630", _DEVICE: "17", _CHECKPOINT: "2,256"},
}


def planned(config: Config, changes: Mapping[str, Any]) -> Config:
    """A recipe on another layout."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=dict(changes))})


def counted(config: Config, told: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """The rows that need an engine: it is built, makes a step, draws and loads."""
    with meta_world(with_micro_batches(config, 1)) as world, world.engine() as engine:
        told("built")
        with world.recorder(engine) as record:
            world.recorded_step(engine, record, 1)
        told("made a step")
        values = drawn(engine)
        told("drew its weights")
        read = loaded(engine)
        told("loaded a checkpoint")
    rows = {label: _calls([one for one in record.collectives if _group(one) == key]) for key, label in _GROUPS.items()}
    return rows | {
        _HOST_READS: str(len(record.host_reads)),
        _DRAWN: f"{values / 1e6:,.0f}",
        _LOADED: f"{(read['weights'] + read['optimizer']) / 1e9:.1f}",
        # of one micro-batch
        _LOADED_MEMORY: f"{read['memory'] * config.micro_batches / 1e9:.1f}",
    }


def derived(config: Config) -> dict[str, str]:
    """The rows that follow from the config."""
    model = config.model
    fields = [field for index in range(model.layers) for field in model.mixer_of(index).memory(model)]
    itemsize = 2 if config.run.precision == "bf16" else 4
    stream = sum(field.local_bytes(1, False, itemsize) for field in fields)
    fullest = max((needed_by(config, stage) for stage in range(config.parallel.pipeline)), key=lambda one: one.device)
    return {
        _PARAMETERS: f"{fullest.parameters / 1e6:,.0f}",
        _DEVICE: f"{fullest.device / 1e9:.1f}",
        _HOST: f"{fullest.host / 1e9:.1f}",
        _STREAM: f"{stream / 1e6:,.0f}",
        _CHECKPOINT: f"{12 * plan_of(config).parameters / 1e9:,.0f}",  # weights and both moments of AdamW, float32
        _MEMORY: f"{stream * config.data.streams / 1e9:,.0f}",
    }


def table(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The table, in Markdown.

    Args:
        found: by layout, its rows.
    """
    rows = [["", *found], ["---", *("---:" for _ in found)]]
    rows += [
        [label, *(_cell(name, label, one[label]) for name, one in found.items())] for label in (*COUNTED, *DERIVED)
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(name: str, label: str, value: str) -> str:
    before = BEFORE[name].get(label)
    return value if before is None else f"{before} → {value}"


def _group(call: Collective) -> str | None:
    if call.ranks == 1 or call.dtype == torch.int32:  # nothing moves; stages tell each other shapes once
        return None
    if call.op in ("send", "recv"):
        return "pipe"
    return call.group if call.group in ("data", "tensor", "tied") else "world"


def _calls(calls: list[Collective]) -> str:
    return f"{len(calls)}, {sum(call.bytes for call in calls) / 1e9:.3g}" if calls else "-"
