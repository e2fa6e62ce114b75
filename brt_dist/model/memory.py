"""What a layer remembers of a stream from one segment to the next."""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerMemory(NamedTuple):
    """Memory of one layer, batch first; h = heads of this tensor parallel rank.

    It says nothing about documents: where a document starts, the layer does not look at it.
    """

    state: Tensor | None
    """(b, S, D) recurrent state before the next block, none in a layer without recurrence; under sequence parallel this
    rank's vectors (b, S/tp, D)"""
    keys: Tensor
    """(b, W, h, E) normalised keys of the last window of tokens"""
    values: Tensor
    """(b, W, h, E) values of the last window of tokens"""


def carried(memory: LayerMemory) -> LayerMemory:
    """What a layer remembers at the end of a segment, to hand to the next one: cut off from the graph of this one.

    The only place where gradients end: back-propagation through time is truncated to a segment.  Copies, because a
    view would keep the keys of the whole segment alive.
    """
    return LayerMemory(None if memory.state is None else _cut(memory.state), _cut(memory.keys), _cut(memory.values))


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
