"""Boxes of a tensor: a range in each dimension.  No torch in here."""

import math
from collections.abc import Iterator, Sequence

Box = tuple[tuple[int, int], ...]
"""(start, stop) in each dimension of a tensor"""


def runs(shape: Sequence[int], box: Box, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a part of a box lies in a tensor that is stored row by row.

    Args:
        shape: of the tensor.
        box: (start, stop) in each dimension.
        begin: first element of the part, in row-major order of the box.
        end: end of the part, exclusive.

    Yields:
        First element in the tensor and number of elements of each consecutive run, in order.
    """
    if begin >= end:
        return
    inner = len(shape)  # dimensions from here on are whole, so that their elements are consecutive
    while inner and box[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    inner = max(inner - 1, 0)  # ... and a range of the dimension before them still is
    sizes = [stop - start for start, stop in box]
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    length = math.prod(sizes[inner:])
    corner = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
    for number in range(begin // length, -(-end // length)):
        place, rest = corner, number
        for dim in reversed(range(inner)):
            rest, index = divmod(rest, sizes[dim])
            place += index * strides[dim]
        first, last = max(begin - number * length, 0), min(end - number * length, length)
        yield place + first, last - first
