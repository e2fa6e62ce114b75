"""Adafactor (arXiv 1804.04235) with the paper's settings, exact in every layout.

The rule is that of the reference training code: factored second moment with decay 1 - t^-0.8, update clipped to an RMS
of 1, rate multiplied by the parameter's RMS, first moment (0.9) of the scaled update, no bias correction.

Row and column statistics and the RMS values belong to the whole matrix, but a rank holds only a part of it: a slice by
tensor parallelism, and of that a contiguous flat range by ZeRO.  So each rank adds up what it has, and the sums of all
parameters are reduced together: two all-reduces per update, one for the statistics of gradients and weights, one for
the RMS of the updates, which depend on the former.

All parameters are one group, laid end to end by ZeRO and cut into equal ranges.  (Not one group each: DeepSpeed reduces
a gradient norm per group over all pipeline stages, and stages with different numbers of groups would wait forever.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.optim.base import LocalMatrix, Sharding
from brt_dist.optim.matrix_range import MatrixRange

SQUARE_EPS = 1e-30  # added to squared gradients
SMALLEST_SCALE = 1e-3  # of the parameter's RMS: a parameter near zero still moves
CLIP_RMS = 1.0


@dataclass(frozen=True)
class _Piece:
    """What this rank steps of one parameter (perhaps nothing), as views.

    Attributes:
        index: number of the parameter on this rank.
        range: where the piece lies in the parameter.
        here: where it lies in the tensor that holds it.
        tensor: that tensor.
        state: of the tensor.
    """

    index: int
    range: MatrixRange
    here: slice
    tensor: Tensor
    state: dict[str, Any]

    @property
    def weight(self) -> Tensor:
        return self.tensor.view(-1)[self.here]

    @property
    def gradient(self) -> Tensor:
        """In float32."""
        if self.tensor.grad is None:
            return torch.zeros_like(self.weight, dtype=torch.float32)
        return self.tensor.grad.reshape(-1)[self.here].float()

    @property
    def square(self) -> Tensor:
        """Of the gradient."""
        return self.gradient.square() + SQUARE_EPS

    @property
    def first_moment(self) -> Tensor:
        moment: Tensor = self.state["first_moment"]
        return moment.view(-1)[self.here]

    def moment(self, name: str) -> Tensor:
        """A second moment of this parameter: by "row", by "column", or the whole "second" one."""
        moment: Tensor = self.state[f"{name}_moment.{self.index}"]
        return moment

    def remember(self, name: str, mean: Tensor, decay: float) -> None:
        """Update a second moment, which is zero at first."""
        self.state.setdefault(f"{name}_moment.{self.index}", torch.zeros_like(mean))
        self.moment(name).mul_(decay).add_(mean, alpha=1.0 - decay)


class _Sums(NamedTuple):
    """Sums over a whole parameter; rows and columns are those of which this rank has a part.

    Attributes:
        rows: of its squared gradients, (rows,); (0,) if it is not factored.
        columns: of its squared gradients, (P, columns); (P, 0) if it is not factored.
        weights: of its squared weights, (P,).
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor


class AdafactorUpdate(torch.optim.Optimizer):
    """See the module.

    Args:
        parameters: those of this rank.
        parts: what each of them is, in the same order.
        sharding: how they are cut, and the process group over which their parts are spread.
        lr: relative step size; set `group["lr"]` before each step.
        momentum: decay of the first moment, 0 for none.
        decay_rate: exponent of the second moment's decay.
        factor_from: matrices with at least this many rows and columns are factored.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
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
        """One update of every parameter.  Collective: all ranks that share parameters step together.

        The directions are computed twice, because keeping them would take as much memory as all gradients.
        """
        (group,) = self.param_groups
        pieces = self._pieces(group["params"])
        buffer, sums = self._blank_sums(pieces[0].tensor.device)
        for piece, one in zip(pieces, sums, strict=True):
            self._measure(piece, one)
        self._reduce(buffer)
        squares = buffer.new_zeros(sum(len(one.weights) for one in sums))
        of_directions = squares.split([len(one.weights) for one in sums])
        for piece, one, square in zip(pieces, sums, of_directions, strict=True):
            self._remember(piece, one, group["decay_rate"])
            if self._contributes(piece):
                square.copy_(piece.range.sum_matrices(self._direction(piece).square()))
        self._reduce(squares)
        for piece, one, square in zip(pieces, sums, of_directions, strict=True):
            self._move(piece, one.weights, square, group)

    def _pieces(self, held: list[Tensor]) -> list[_Piece]:
        """Every parameter of the group, whole (each tensor is one) or as a range of the one flat tensor."""
        flat = self._sharding.is_flat
        for tensor in held:
            state = self.state[tensor]
            if not state:
                state["first_moment"] = torch.zeros_like(tensor, dtype=torch.float32)
                state["step"] = torch.zeros((), dtype=torch.float32)
            state["step"] += 1
        begin = self._sharding.shard * held[0].numel() if flat else 0
        end = begin + held[0].numel()
        offset, pieces = 0, []
        for index, part in enumerate(self._parts):
            tensor = held[0] if flat else held[index]
            start, stop, here = 0, part.numel, slice(0, part.numel)
            if flat:
                start, stop = max(begin - offset, 0), max(0, min(end - offset, part.numel))
                start = min(start, stop)
                here = slice(offset + start - begin, offset + stop - begin) if stop > start else slice(0, 0)
                offset += part.numel
            where = MatrixRange(part, start, stop - start, tensor.device)
            pieces.append(_Piece(index, where, here, tensor, self.state[tensor]))
        return pieces

    def _blank_sums(self, device: torch.device) -> tuple[Tensor, list[_Sums]]:
        """One buffer with room for the sums of all parameters, and views of it for this rank's part of each.

        Split sums have a place for every tensor parallel rank's part, so that adding up the buffers of all ranks puts
        the parts side by side and sums the rest.
        """
        ranks, rank = self._sharding.tensor, self._sharding.tensor_rank
        sizes: list[int] = []
        for part in self._parts:
            rows, columns = (part.rows, part.columns) if self._is_factored(part) else (0, 0)
            count = part.stacked[0]
            sizes += [rows * (ranks if part.split == 0 else 1), count * columns * (ranks if part.split == 1 else 1)]
            sizes += [count]
        buffer = torch.zeros(sum(sizes), device=device)
        views = iter(buffer.split(sizes))
        sums = []
        for part, all_rows, all_columns, weights in zip(self._parts, views, views, views, strict=True):
            by_matrix = all_columns.view(part.stacked[0], -1)
            sums.append(
                _Sums(
                    all_rows.chunk(ranks)[rank] if part.split == 0 else all_rows,
                    by_matrix.chunk(ranks, 1)[rank] if part.split == 1 else by_matrix,
                    weights,
                )
            )
        return buffer, sums

    def _measure(self, piece: _Piece, sums: _Sums) -> None:
        """Add what this rank has of a parameter to its sums."""
        if not self._contributes(piece):
            return
        sums.weights.copy_(piece.range.sum_matrices(piece.weight.float().square()))
        if self._is_factored(piece.range.part):
            square = piece.square
            sums.rows.copy_(piece.range.sum_rows(square))
            sums.columns.copy_(piece.range.sum_columns(square))

    def _remember(self, piece: _Piece, sums: _Sums, decay_rate: float) -> None:
        """Update the second moments, now that the sums are those of the whole parameter."""
        part = piece.range.part
        decay = 1.0 - float(piece.state["step"]) ** -decay_rate
        if self._is_factored(part):
            piece.remember("row", sums.rows / part.logical_columns, decay)
            piece.remember("column", sums.columns / part.rows_per_matrix, decay)
        else:
            piece.remember("second", piece.square, decay)

    def _direction(self, piece: _Piece) -> Tensor:
        """The gradient divided by the root of its second moment."""
        part = piece.range.part
        if not self._is_factored(part):
            return piece.gradient * piece.moment("second").rsqrt()
        row, column = piece.moment("row"), piece.moment("column")
        # the mean of the row moments is that of the column moments; tensor parallelism leaves one of them whole
        if part.columns < part.logical_columns:
            mean = row.view(-1, *part.stacked).sum((0, 2)) / part.rows_per_matrix
        else:
            mean = column.sum(1) / part.logical_columns
        row_factor = (row / piece.range.of_rows(mean)).rsqrt()
        return piece.gradient * piece.range.outer(row_factor, column.rsqrt())

    def _move(self, piece: _Piece, weights: Tensor, directions: Tensor, group: dict[str, Any]) -> None:
        """Update the weights; given the sums of the squared weights and directions of the whole parameter."""
        part = piece.range.part
        size = part.rows_per_matrix * part.logical_columns
        clip = ((directions / size).sqrt() / CLIP_RMS).clamp(min=1.0)
        scale = group["lr"] * (weights / size).sqrt().clamp(min=SMALLEST_SCALE) / clip
        update = self._direction(piece) * piece.range.per_element(scale)
        if group["momentum"]:
            update = piece.first_moment.mul_(group["momentum"]).add_(update, alpha=1.0 - group["momentum"])
        piece.weight.sub_(update.to(piece.weight.dtype))

    def _is_factored(self, part: LocalMatrix) -> bool:
        return part.smallest_side >= self._factor_from

    def _contributes(self, piece: _Piece) -> bool:
        """Only the first tensor parallel rank adds sums of parameters that every rank holds whole."""
        return piece.range.part.split is not None or self._sharding.tensor_rank == 0

    def _reduce(self, sums: Tensor) -> None:
        if self._sharding.group.size() > 1:
            dist.all_reduce(sums, group=self._sharding.group)
