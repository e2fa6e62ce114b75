"""Clearing memory, or one part of it, between segments: what the carried state and the carried cache are each worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, TypeAlias, cast

import torch
from torch import nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.memory import Memory
from brt_dist.model.mixers.base import MemoryField
from brt_dist.model.sequence import own_part

MemoryPart: TypeAlias = Literal["state", "cache"]
MemoryUse: TypeAlias = Literal["carried", "cleared", "state cleared", "cache cleared"]
"""What an evaluation does with memory at the start of every segment."""

_PARTS: dict[MemoryUse, MemoryPart] = {"state cleared": "state", "cache cleared": "cache"}


def part_of(use: MemoryUse) -> MemoryPart | None:
    """The part of memory that is cleared; None: all or nothing."""
    return _PARTS.get(use)


def parts_of(config: ModelConfig) -> list[MemoryPart]:
    """The parts that a model carries."""
    fields = [field for index in range(config.layers) for field in config.mixer_of(index).memory(config)]
    found: list[MemoryPart] = ["state"] if any(not field.is_cache for field in fields) else []
    return [*found, "cache"] if any(field.is_cache for field in fields) else found


@dataclass(frozen=True)
class MemoryPass:
    """Reading all text once.

    Attributes:
        name: shown to people.
        use: of memory.
        layers: those of which a part is cleared; None: all.
    """

    name: str
    use: MemoryUse
    layers: tuple[int, ...] | None = None


def passes(config: ModelConfig, *, cleared: bool, parts: bool) -> list[MemoryPass]:
    """The passes over text that show what memory is worth.

    Args:
        config: the network.
        cleared: add a pass with all memory cleared.
        parts: add passes with each part of it cleared, and, if several layers have a state, with the state of each.
    """
    uses: list[MemoryUse] = ["carried", "cleared"] if cleared else ["carried"]
    if not parts:
        return [MemoryPass(use, use) for use in uses]
    uses += [use for use, part in _PARTS.items() if part in parts_of(config)]
    stateful = [
        layer
        for layer in range(config.layers)
        if any(not field.is_cache for field in config.mixer_of(layer).memory(config))
    ]
    single = [MemoryPass(f"state of layer {layer} cleared", "state cleared", (layer,)) for layer in stateful]
    return [*(MemoryPass(use, use) for use in uses), *(single if len(single) > 1 else [])]


def parts_to_clear(config: ModelConfig) -> list[MemoryUse]:
    """The evaluations that distinguish the parts of memory; none if there is only one part."""
    parts = parts_of(config)
    return [use for use, part in _PARTS.items() if part in parts] if len(parts) > 1 else []


def clear(network: nn.Module, memory: Sequence[Memory], part: MemoryPart, layers: Sequence[int] | None = None) -> None:
    """Reset one part of the memory of all streams to what a document starts with, in place.

    Args:
        network: a `BlockRecurrentModel`.
        memory: of each layer.
        part: the state, or the cache of the last tokens.
        layers: which layers; None: all.
    """
    for module, carried in zip(cast(nn.ModuleList, network.layers), memory, strict=True):
        layer = cast(Layer, module)
        if layers is not None and layer.index not in layers:
            continue
        for name, start in starts_of(layer, part):
            carried[name] = start.expand_as(carried[name]).to(carried[name])


def starts_of(layer: Layer, part: MemoryPart) -> Iterator[tuple[str, torch.Tensor]]:
    """What a document starts with in the fields of a part, on this rank, to be expanded over streams."""
    for field in _fields(layer, part):
        if field.start == "zeros":
            yield field.name, torch.zeros((), device=next(layer.parameters()).device)
            continue
        start = cast(torch.Tensor, attrgetter(field.start)(layer.mixer)).detach()
        is_split = layer.splits_sequence and field.is_split_by_sequence
        yield field.name, own_part(start) if is_split else start


def start_parameters(layer: Layer, part: MemoryPart) -> list[nn.Parameter]:
    """Parameters that `starts_of` reads; gather them first if they are sharded."""
    return [attrgetter(field.start)(layer.mixer) for field in _fields(layer, part) if field.start != "zeros"]


def _fields(layer: Layer, part: MemoryPart) -> list[MemoryField]:
    fields = layer.model.mixer_of(layer.index).memory(layer.model)
    return [field for field in fields if field.is_cache == (part == "cache")]
