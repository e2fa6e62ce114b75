"""Clearing one part of memory between segments: what the carried state and the carried cache are each worth."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Literal, TypeAlias, cast

import torch
from torch import nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.memory import Memory
from brt_dist.model.mixers.base import MemoryField

MemoryPart: TypeAlias = Literal["state", "cache"]


def parts_of(config: ModelConfig) -> list[MemoryPart]:
    """The parts that a model carries."""
    fields = [field for index in range(config.layers) for field in config.mixer_of(index).memory(config)]
    found: list[MemoryPart] = ["state"] if any(not field.is_cache for field in fields) else []
    return [*found, "cache"] if any(field.is_cache for field in fields) else found


def clear(network: nn.Module, memory: Sequence[Memory], part: MemoryPart) -> None:
    """Put into one part of the memory of all streams what a document starts with, in place.

    Args:
        network: a `BlockRecurrentModel`.
        memory: of each layer.
        part: the state, or the cache of the last tokens.
    """
    for module, carried in zip(cast(nn.ModuleList, network.layers), memory, strict=True):
        layer = cast(Layer, module)
        for field in layer.model.mixer_of(layer.index).memory(layer.model):
            if field.is_cache == (part == "cache"):
                carried[field.name] = _start(layer, field).expand_as(carried[field.name]).to(carried[field.name])


def _start(layer: Layer, field: MemoryField) -> torch.Tensor:
    if field.start == "zeros":
        return torch.zeros((), device=next(layer.parameters()).device)
    return cast(torch.Tensor, attrgetter(field.start)(layer.mixer)).detach()
