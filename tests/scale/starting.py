"""Counts what a rank does before its first step: values that it draws, or bytes of a checkpoint that it reads."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from brt_dist.model.initial_values import Initializer
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pieces import LogicalTensor, Region
from brt_dist.parallel.state import RankState


def drawn(engine: Engine) -> int:
    """Random values that a rank draws for its first weights."""
    counts: list[int] = []

    def draw(initializer: Initializer, key: str, shape: object, box: object, begin: int, end: int) -> Tensor:
        counts.append(end - begin if initializer.is_random else 0)
        return torch.empty(end - begin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankState, "_fill", _without_values)
        patch.setattr(Initializer, "draw", draw)
        engine._state.draw(0)
    return sum(counts)


def loaded(engine: Engine) -> Counter[str]:
    """Bytes that a rank reads of "weights", "optimizer" and "memory"."""
    found: Counter[str] = Counter()

    def read(tensor: LogicalTensor, region: Region) -> Tensor:
        found[tensor.name.partition("/")[0]] += region.size * tensor.dtype.itemsize
        return torch.empty(region.size, dtype=tensor.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankState, "_fill", _without_values)
        engine.load(read, 1)
    return found


def _without_values(state: RankState, values: Tensor, region: Region, read: Callable[[Region], Tensor]) -> None:
    """Replaces the function that skips tensors on the meta device.  ZeRO is on: each rank fills its own part."""
    assert state._zero is not None
    if region.size:
        read(region)
