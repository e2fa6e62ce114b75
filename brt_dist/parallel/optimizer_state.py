"""The optimizer's state as pieces of logical tensors: its state for each parameter, wherever ZeRO has put it.

Names: `optimizer/PARAMETER/FIELD`, with the fields that the kind of optimizer declares.  All parameters share one
number of updates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.model.parameters import LogicalParameter
from brt_dist.optim.base import LocalMatrix, OptimizerKind, StateField
from brt_dist.parallel.layout import Layout
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


class OptimizerState:
    """The state of this rank's optimizer, by the fields that its kind declares.

    Args:
        kind: the section of the config that declares them.
        optimizer: what it built.
        layout: of this rank.
    """

    def __init__(self, kind: OptimizerKind, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
        self._kind, self._optimizer, self._layout = kind, optimizer, layout

    @property
    def updates(self) -> int:
        """Number of updates; 0 before the first."""
        return max((int(state["step"]) for state in self._optimizer.state.values() if "step" in state), default=0)

    def prepare(self, fragments: Sequence[Fragment], updates: int) -> None:
        """Create the state as after `updates` updates, with blank tensors: :meth:`pieces` then has all of them.

        Args:
            fragments: one for each parameter, in the order in which the optimizer has them.
        """
        masters = {id(fragment.master): fragment.master for fragment in fragments}
        for master in masters.values():
            self._optimizer.state[master].clear()
            self._optimizer.state[master]["step"] = torch.tensor(float(updates))
        for number, fragment in enumerate(fragments):
            state = self._optimizer.state[fragment.master]
            for field in self._fields(fragment):
                key, dtype = _key(field, number), torch.float32
                if field.shape is not None:
                    state[key] = torch.zeros(field.local, dtype=dtype, device=fragment.master.device)
                elif field.is_apart:
                    state[key] = torch.zeros(fragment.count, dtype=dtype, device=fragment.master.device)
                elif key not in state:
                    state[key] = torch.zeros_like(fragment.master, dtype=dtype)

    def pieces(self, fragments: Sequence[Fragment]) -> Iterator[Piece]:
        """All optimizer state of this rank; `fragments` as for :meth:`prepare`."""
        for number, fragment in enumerate(fragments):
            for field in self._fields(fragment):
                name = f"optimizer/{fragment.parameter.name}/{field.name}"
                if field.shape is None and not fragment.count:
                    continue  # ZeRO has put all of it on other ranks
                values = self._optimizer.state[fragment.master][_key(field, number)]
                if field.shape is None:
                    held = values[: fragment.region.size] if field.is_apart else fragment.of(values)
                    shape, region = fragment.parameter.shape, fragment.region
                else:
                    shape, region = field.shape, self._region(field)
                    held = values.view(-1)[: region.size]
                yield Piece(LogicalTensor(name, shape, torch.float32), region, held)

    def _fields(self, fragment: Fragment) -> tuple[StateField, ...]:
        return self._kind.state_fields(LocalMatrix.of(fragment.parameter, self._layout.tensor))

    def _region(self, field: StateField) -> Region:
        """What this tensor parallel rank holds of a field with its own shape."""
        shape = field.shape or ()
        box = [(0, size) for size in shape]
        if field.split is not None:
            size, local, rank = shape[field.split], field.local[field.split], self._layout.tensor_rank
            # the padding of the vocabulary is behind the last row
            box[field.split] = (min(rank * local, size), min((rank + 1) * local, size))
        return Region.of_box(tuple(box))


def _key(field: StateField, number: int) -> str:
    """The tensor in the state of a master; `number` is that of the parameter."""
    return f"{field.name}.{number}" if field.is_apart or field.shape is not None else field.name
