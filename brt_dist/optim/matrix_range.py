"""A flat range of a matrix, as ZeRO cuts it, seen as rows and columns."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from brt_dist.optim.base import LocalMatrix


class MatrixRange:
    """A contiguous range of a rank's matrix: the rows that it touches; the first and the last may be partial.

    Values of the range are flat tensors (count,).  Sums are those of the range alone, with zeros where it does not
    reach.  No result depends on the order in which a device runs its threads.

    Args:
        part: the matrix, (rows, columns), made of P stacked matrices.
        start: first element of the range.
        count: number of its elements; may be 0.
        device: of the values.
    """

    def __init__(self, part: LocalMatrix, start: int, count: int, device: torch.device) -> None:
        self.part = part
        self._count, self._device = count, device
        self._head = start % part.columns
        self._first = start // part.columns
        self._number = -(-(self._head + count) // part.columns) if count else 0

    def sum_rows(self, flat: Tensor) -> Tensor:
        """Of each row, (rows,)."""
        sums = flat.new_zeros(self.part.rows)
        sums[self._touched] = self._whole(flat).sum(1)
        return sums

    def sum_columns(self, flat: Tensor) -> Tensor:
        """Of each column of each stacked matrix, (P, columns)."""
        if flat.device.type != "cpu":
            return self._sum_runs(flat)
        # Row after row, with the bits of earlier versions.  On CUDA index_add_ would add in no order.
        sums = flat.new_zeros(self.part.stacked[0], self.part.columns)
        return sums.index_add_(0, self._matrix[self._touched], self._whole(flat))

    def sum_matrices(self, flat: Tensor) -> Tensor:
        """Of each stacked matrix, (P,)."""
        return self.sum_columns(flat).sum(1)

    def outer(self, row: Tensor, column: Tensor) -> Tensor:
        """row (rows,) times column (P, columns), at the elements of the range."""
        matrix = row[self._touched, None] * column[self._matrix[self._touched]]
        return matrix.view(-1)[self._head : self._head + self._count]

    def of_rows(self, values: Tensor) -> Tensor:
        """values (P,) of the stacked matrices -> (rows,)."""
        return values[self._matrix]

    def per_element(self, values: Tensor) -> Tensor:
        """values (P,) of the stacked matrices, at the elements of the range."""
        if self.part.stacked[0] == 1:
            return values
        rows = values[self._matrix[self._touched]]
        return rows.repeat_interleave(self.part.columns)[self._head : self._head + self._count]

    @cached_property
    def _matrix(self) -> Tensor:
        """Number of the stacked matrix that each row belongs to, (rows,)."""
        count, run = self.part.stacked
        return torch.arange(self.part.rows, device=self._device) // run % count

    @property
    def _touched(self) -> slice:
        return slice(self._first, self._first + self._number)

    def _whole(self, flat: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """The touched rows, with rows of zeros before and after them: (number of rows, columns)."""
        columns = self.part.columns
        head = self._head + before * columns
        tail = (self._number + after) * columns - self._head - self._count
        padded = functional.pad(flat, (head, tail)) if head or tail else flat
        return padded.view(before + self._number + after, columns)

    def _sum_runs(self, flat: Tensor) -> Tensor:
        """(P, columns), as one sum over the runs of rows in which the matrices alternate."""
        count, run = self.part.stacked
        before = self._first % (count * run)
        after = -(before + self._number) % (count * run)
        return self._whole(flat, before, after).view(-1, count, run, self.part.columns).sum((0, 2))
