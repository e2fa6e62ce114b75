"""Adafactor (arXiv 1804.04235) with the paper's settings, exact in every layout.

The rule is that of the reference training code: factored second moment with decay 1 - t^-0.8, update clipped to an RMS
of 1, rate multiplied by the parameter's RMS, first moment (0.9) of the scaled update, no bias correction.

Row and column statistics and the RMS values belong to the whole matrix, but a rank holds only a part of it: a slice by
tensor parallelism, and of that a contiguous flat range by ZeRO.  So each rank adds up what it has and the small sums
are reduced over the groups that share the matrix.

All parameters are one group, laid end to end by ZeRO and cut into equal ranges.  (Not one group each: DeepSpeed reduces
a gradient norm per group over all pipeline stages, and stages with different numbers of groups would wait forever.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from brt_dist.optim.base import LocalMatrix, Sharding

SQUARE_EPS = 1e-30  # added to squared gradients
SMALLEST_SCALE = 1e-3  # of the parameter's RMS: a parameter near zero still moves
CLIP_RMS = 1.0


def matrix_of_row(part: LocalMatrix, device: torch.device) -> torch.Tensor:
    """Number of the stacked matrix that each local row belongs to, (rows,)."""
    count, run = part.stacked
    return torch.arange(part.rows, device=device) // run % count


@dataclass(frozen=True)
class _Piece:
    """The range of one parameter that is on this rank (perhaps empty), as views."""

    index: int
    rows: "_Rows"
    weight: torch.Tensor
    gradient: torch.Tensor
    first_moment: torch.Tensor


class AdafactorUpdate(torch.optim.Optimizer):
    """See the module.

    Args:
        parameters: those of this rank.
        parts: what each of them is, in the same order.
        sharding: how they are cut, and the process groups over which their parts are spread.
        lr: relative step size; set `group["lr"]` before each step.
        momentum: decay of the first moment, 0 for none.
        decay_rate: exponent of the second moment's decay.
        factor_from: matrices with at least this many rows and columns are factored.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        parts: Sequence[LocalMatrix],
        sharding: Sharding,
        *,
        lr: float,
        momentum: float,
        decay_rate: float,
        factor_from: int,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay_rate": decay_rate})
        self._parts, self._sharding, self._factor_from = parts, sharding, factor_from

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter.  Collective: all ranks that share parameters step together."""
        (group,) = self.param_groups
        for piece, state in self._pieces(group["params"]):
            self._update(piece, state, group)

    def _pieces(self, held: list[torch.Tensor]) -> Iterator[tuple[_Piece, dict[str, Any]]]:
        """Every parameter of the group, whole (each tensor is one) or as a range of the one flat tensor."""
        flat = self._sharding.is_flat
        begin = self._sharding.shard * held[0].numel() if flat else 0
        end = begin + held[0].numel()
        offset = 0
        for index, part in enumerate(self._parts):
            tensor = held[0] if flat else held[index]
            if flat:
                start, stop = max(begin - offset, 0), max(0, min(end - offset, part.numel))
                start = min(start, stop)
                here = slice(offset + start - begin, offset + stop - begin) if stop > start else slice(0, 0)
                offset += part.numel
            else:
                start, stop, here = 0, part.numel, slice(0, part.numel)
            state = self.state[tensor]
            if not state:
                state["first_moment"] = torch.zeros_like(tensor, dtype=torch.float32)
                state["step"] = torch.zeros((), dtype=torch.float32)
            if index == 0 or not flat:
                state["step"] += 1
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            yield (
                _Piece(
                    index=index,
                    rows=_Rows(part, start, stop - start, tensor.device),
                    weight=tensor.view(-1)[here],
                    gradient=gradient.reshape(-1)[here].float(),
                    first_moment=state["first_moment"].view(-1)[here],
                ),
                state,
            )

    def _update(self, piece: _Piece, state: dict[str, Any], group: dict[str, Any]) -> None:
        decay = 1.0 - float(state["step"]) ** -group["decay_rate"]
        rows, gradient = piece.rows, piece.gradient
        square = gradient.square() + SQUARE_EPS
        if rows.part.smallest_side >= self._factor_from:
            update = self._factored(piece, square, state, decay)
        else:
            second = state.setdefault(f"second_moment.{piece.index}", torch.zeros_like(gradient))
            second.mul_(decay).add_(square, alpha=1.0 - decay)
            update = gradient * second.rsqrt()
        clip = (self._rms(update, rows) / CLIP_RMS).clamp(min=1.0)
        scale = group["lr"] * self._rms(piece.weight.float(), rows).clamp(min=SMALLEST_SCALE) / clip
        update = update * rows.per_element(scale)
        if group["momentum"]:
            update = piece.first_moment.mul_(group["momentum"]).add_(update, alpha=1.0 - group["momentum"])
        piece.weight.sub_(update.to(piece.weight.dtype))

    def _factored(self, piece: _Piece, square: torch.Tensor, state: dict[str, Any], decay: float) -> torch.Tensor:
        part, device = piece.rows.part, square.device
        row_mean = self._sum(piece.rows.sum_rows(square), part.split == 1) / part.logical_columns
        column_mean = self._sum(piece.rows.sum_columns(square), part.split == 0) / part.rows_per_matrix
        row = state.setdefault(f"row_moment.{piece.index}", torch.zeros_like(row_mean))
        column = state.setdefault(f"column_moment.{piece.index}", torch.zeros_like(column_mean))
        row.mul_(decay).add_(row_mean, alpha=1.0 - decay)
        column.mul_(decay).add_(column_mean, alpha=1.0 - decay)
        # the mean over columns of the column moments is the mean over rows of the row moments
        total = column.sum(1)
        if part.split == 1:
            dist.all_reduce(total, group=self._sharding.tensor_group)
        mean = total / part.logical_columns
        row_factor = (row / mean[matrix_of_row(part, device)]).rsqrt()
        return piece.gradient * piece.rows.outer(row_factor, column.rsqrt())

    def _rms(self, values: torch.Tensor, rows: "_Rows") -> torch.Tensor:
        """Root mean square of each stacked matrix, (P,)."""
        total = self._sum(rows.sum_matrices(values.square()), rows.part.split is not None)
        return (total / (rows.part.rows_per_matrix * rows.part.logical_columns)).sqrt()

    def _sum(self, values: torch.Tensor, over_tensor_parallel: bool) -> torch.Tensor:
        if self._sharding.shards > 1:
            dist.all_reduce(values, group=self._sharding.data_group)
        if over_tensor_parallel:
            dist.all_reduce(values, group=self._sharding.tensor_group)
        return values


class _Rows:
    """A flat range of a matrix, seen as the rows that it touches (the first and last may be cut)."""

    def __init__(self, part: LocalMatrix, start: int, count: int, device: torch.device) -> None:
        self.part = part
        self._count = count
        self._head = start % part.columns
        self._first = start // part.columns
        self._number = -(-(self._head + count) // part.columns) if count else 0
        self._matrix = matrix_of_row(part, device)

    @property
    def _touched(self) -> slice:
        return slice(self._first, self._first + self._number)

    def _whole(self, flat: torch.Tensor) -> torch.Tensor:
        """Range as (touched rows, columns), zero where the range does not reach."""
        tail = self._number * self.part.columns - self._head - self._count
        return functional.pad(flat, (self._head, tail)).view(self._number, self.part.columns)

    def sum_rows(self, flat: torch.Tensor) -> torch.Tensor:
        """(rows,)"""
        sums = flat.new_zeros(self.part.rows)
        sums[self._touched] = self._whole(flat).sum(1)
        return sums

    def sum_columns(self, flat: torch.Tensor) -> torch.Tensor:
        """(P, columns)"""
        sums = flat.new_zeros(self.part.stacked[0], self.part.columns)
        return sums.index_add_(0, self._matrix[self._touched], self._whole(flat))

    def sum_matrices(self, flat: torch.Tensor) -> torch.Tensor:
        """(P,)"""
        return self.sum_columns(flat).sum(1)

    def outer(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """row (rows,) times column (P, columns), at the elements of the range."""
        matrix = row[self._touched, None] * column[self._matrix[self._touched]]
        return matrix.view(-1)[self._head : self._head + self._count]

    def per_element(self, value: torch.Tensor) -> torch.Tensor:
        """value (P,), at the elements of the range."""
        if self.part.stacked[0] == 1:
            return value
        rows = value[self._matrix[self._touched]]
        return rows.repeat_interleave(self.part.columns)[self._head : self._head + self._count]
