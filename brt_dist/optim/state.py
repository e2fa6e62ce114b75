"""The optimizer's state as pieces of logical tensors: what it knows of each parameter, wherever ZeRO has put it.

Names: `optimizer/PARAMETER/FIELD`.  AdamW: exp_avg and exp_avg_sq, shaped as the parameter.  Adafactor: first_moment,
and second_moment (shaped as the parameter) or, of a factored matrix, row_moment and column_moment.  The number of
updates is one number for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.model.parameters import LogicalParameter
from brt_dist.optim.adafactor import Adafactor, MatrixPart
from brt_dist.parallel.pieces import LogicalTensor, Piece, Region


@dataclass(frozen=True)
class Fragment:
    """The float32 master values of a parameter that this rank updates.

    Attributes:
        parameter: which one.
        region: of the logical parameter, without the padding of the vocabulary.
        count: how many they are, with padding; may be 0.
        master: the tensor that the optimizer steps (a whole parameter, or the flat partition of ZeRO).
        offset: where in `master` they begin.
    """

    parameter: LogicalParameter
    region: Region
    count: int
    master: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """This fragment of a tensor laid out as `master`; (region.size,), a view."""
        return tensor.view(-1)[self.offset : self.offset + self.region.size]


def updates_done(optimizer: torch.optim.Optimizer) -> int:
    """Number of updates; 0 before the first."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def prepare(optimizer: torch.optim.Optimizer, fragments: Sequence[Fragment], updates: int) -> None:
    """Make the state as it is after `updates` updates, with blank tensors: :func:`optimizer_pieces` has all of them."""
    masters = {id(fragment.master): fragment.master for fragment in fragments}
    for master in masters.values():
        state = optimizer.state[master]
        state.clear()
        state["step"] = torch.tensor(float(updates))
        if not isinstance(optimizer, Adafactor):
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
            continue
        state["first_moment"] = torch.zeros_like(master, dtype=torch.float32)
    if isinstance(optimizer, Adafactor):
        for fragment, part, index in _adafactor_parts(optimizer, fragments):
            optimizer.state[fragment.master] |= {
                f"{field}.{index}": torch.zeros(shape, device=fragment.master.device)
                for field, shape in part.second_moments(fragment.count)
            }


def optimizer_pieces(
    optimizer: torch.optim.Optimizer, fragments: Sequence[Fragment], tensor_rank: int
) -> Iterator[Piece]:
    """All optimizer state of this rank.

    Args:
        fragments: one for each parameter, in the order in which the optimizer has them.
        tensor_rank: this rank's number on the tensor parallel axis.
    """
    if isinstance(optimizer, Adafactor):
        for fragment, part, index in _adafactor_parts(optimizer, fragments):
            state = optimizer.state[fragment.master]
            yield _like_parameter(fragment, "first_moment", fragment.of(state["first_moment"]))
            for field, _ in part.second_moments(fragment.count):
                yield _second_moment(fragment, part, field, state[f"{field}.{index}"], tensor_rank)
        return
    for fragment in fragments:
        if fragment.count:
            for field in ("exp_avg", "exp_avg_sq"):
                yield _like_parameter(fragment, field, fragment.of(optimizer.state[fragment.master][field]))


def _like_parameter(fragment: Fragment, field: str, values: Tensor) -> Piece:
    return Piece(_logical(fragment, field, fragment.parameter.shape), fragment.region, values)


def _second_moment(fragment: Fragment, part: MatrixPart, field: str, values: Tensor, tensor_rank: int) -> Piece:
    if field == "second_moment":
        return _like_parameter(fragment, field, values[: fragment.region.size])
    shape = (part.logical_rows,) if field == "row_moment" else (part.stacked[0], part.logical_columns)
    box: list[tuple[int, int]] = [(0, size) for size in shape]
    split_field = "row_moment" if part.split == 0 else "column_moment"
    if part.split is not None and field == split_field:
        size = part.rows if part.split == 0 else part.columns
        # the padding of the vocabulary is behind the last row
        box[-1] = (min(tensor_rank * size, shape[-1]), min((tensor_rank + 1) * size, shape[-1]))
    region = Region.of_box(tuple(box))
    return Piece(_logical(fragment, field, shape), region, values.view(-1)[: region.size])


def _logical(fragment: Fragment, field: str, shape: tuple[int, ...]) -> LogicalTensor:
    return LogicalTensor(f"optimizer/{fragment.parameter.name}/{field}", shape, torch.float32)


def _adafactor_parts(optimizer: Adafactor, fragments: Sequence[Fragment]) -> Iterator[tuple[Fragment, MatrixPart, int]]:
    """Each with what Adafactor knows of the matrix, and the number under which the master's state has it."""
    for number, (fragment, part) in enumerate(zip(fragments, optimizer.parts, strict=True)):
        yield fragment, part, number if optimizer.is_flat else 0
