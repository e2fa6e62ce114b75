"""What a layer remembers of its streams from one segment to the next."""

from typing import TypeAlias

import torch
from torch import Tensor

Memory: TypeAlias = dict[str, Tensor]
"""By name of a field that the layer's mixer declares: (b, *shape of this rank's part), streams first.

It says nothing about documents: where one starts, the layer does not look at it."""


def carried(memory: Memory) -> Memory:
    """What a layer remembers at the end of a segment, for the next one: detached from the graph of this one.

    The only place where gradients end: back-propagation through time is truncated to a segment.  Copies, because a
    view would keep the keys of the whole segment alive.
    """
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in memory.items()}
