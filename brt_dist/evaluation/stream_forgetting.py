"""Clears one part of the memory of a rank's streams; `forgetting` does it for a whole network."""

from collections.abc import Sequence

import deepspeed
import torch

from brt_dist.evaluation.forgetting import MemoryPart, start_parameters, starts_of
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pipeline import runs_of
from brt_dist.parallel.stream_memory import StreamMemory


def clear_streams(engine: Engine, memory: StreamMemory, part: MemoryPart, layers: Sequence[int] | None = None) -> None:
    """Reset one part of the memory, in some layers or all, to what a document starts with.  Collective under ZeRO-3."""
    starts: dict[tuple[int, str], torch.Tensor] = {}
    for index, layer in runs_of(engine.stage):
        if layers is not None and layer.index not in layers:
            continue
        with deepspeed.zero.GatheredParameters(start_parameters(layer, part)):
            starts |= {(index, name): value.clone() for name, value in starts_of(layer, part)}
    memory.replace(
        (index, number, name, starts[index, name].expand_as(value))
        for index, number, name, value in list(memory.tensors())
        if (index, name) in starts
    )
