"""What a rank holds of the run's state, described independently of the layout.

The state of a run is a set of logical tensors: weights, optimizer state, stream memory.  A rank holds pieces of them,
whether tensor, data or pipeline parallelism, ZeRO or the number of streams splits them.  Every piece is a range of
consecutive elements in a box of the tensor (a range in each dimension), so one representation serves all splits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.model.boxes import Box


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor of the run.

    Attributes:
        name: `KIND/OWNER...`, for example `weights/layers.3.mlp.up.weight`.
        shape: without padding.
        dtype: its type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Region:
    """Consecutive elements of a box in a logical tensor.

    Attributes:
        box: (start, stop) in each dimension.
        begin: first element, in row-major order of the box.
        end: end of the elements, exclusive.
    """

    box: Box
    begin: int
    end: int

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Region":
        return cls.of_box(tuple((0, size) for size in shape))

    @classmethod
    def of_box(cls, box: Box) -> "Region":
        return cls(box, 0, math.prod(stop - start for start, stop in box))

    @property
    def size(self) -> int:
        return self.end - self.begin

    def part(self, begin: int, end: int) -> "Region":
        """Elements `begin` to `end` of this region, clipped to its size."""
        begin, end = min(begin, self.size), min(end, self.size)
        return Region(self.box, self.begin + begin, self.begin + end)

    def take(self, read: Callable[[tuple[slice, ...]], Tensor]) -> Tensor:
        """The region's elements, (size,).  `read` returns a box of the tensor; only rows of the region are read."""
        slices, begin = self._touched()
        return read(slices).reshape(-1)[begin : begin + self.size]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` (size,) to the region of the logical tensor `tensor`."""
        slices, begin = self._touched()
        view = tensor[slices]
        if view.is_contiguous():
            view.view(-1)[begin : begin + self.size] = values
        else:
            rows = view.reshape(-1)  # a copy
            rows[begin : begin + self.size] = values
            view.copy_(rows.view(view.shape))

    def _touched(self) -> tuple[tuple[slice, ...], int]:
        """The smallest box of whole rows around the region, and where in it the region begins."""
        row = max(math.prod(stop - start for start, stop in self.box[1:]), 1)
        first, last = self.begin // row, -(-self.end // row)
        start = self.box[0][0]
        slices = (slice(start + first, start + last), *(slice(*side) for side in self.box[1:]))
        return slices, self.begin - first * row


@dataclass(frozen=True)
class Piece:
    """A region of a logical tensor, with its values on this rank.  If several ranks hold it, their values are equal.

    Attributes:
        tensor: the logical tensor.
        region: where the values are in it.
        values: (region.size,), a view of the rank's own tensor; or its first elements.
        more: the elements after them, if they are in further tensors.
    """

    tensor: LogicalTensor
    region: Region
    values: Tensor
    more: tuple[Tensor, ...] = ()

    def on_host(self) -> Tensor:
        """A copy of all elements in host memory, (region.size,)."""
        copy = torch.empty(self.region.size, dtype=self.values.dtype)
        begin = 0
        for part in (self.values, *self.more):
            copy[begin : begin + part.numel()] = part.detach().view(-1)
            begin += part.numel()
        return copy


Read = Callable[[LogicalTensor, Region], Tensor]
"""Returns the saved values of a region, (region.size,), on the host.  Raises CheckpointError if they do not exist."""
