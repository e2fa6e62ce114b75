"""Adafactor (arXiv 1804.04235) as in the reference training code; `adafactor_update.py` is the update."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from brt_dist.optim.base import LocalMatrix, OptimizerKind, Sharding, StateField

if TYPE_CHECKING:
    import torch

    from brt_dist.model.parameters import LogicalParameter

FACTOR_FROM = 128  # a matrix is factored if both its sides have this many entries
_SCATTERED = (
    "adafactor sums over rows and columns of a matrix, and here each rank must hold one contiguous range of all "
    "parameters, as with ZeRO 1 and 2; ZeRO 3 gives each rank a slice of every parameter"
)


class Adafactor(OptimizerKind):
    """Adafactor: second moments of a matrix by row and column, steps relative to the size of the parameter."""

    name: Literal["adafactor"] = Field("adafactor", description="Adafactor (arXiv 1804.04235), as in the paper")
    learning_rate: PositiveFloat = Field(
        1e-3, description="peak learning rate, reached at the end of warm-up; scaled by each parameter's RMS"
    )
    momentum: NonNegativeFloat = Field(0.9, lt=1.0, description="decay of the first moment; 0: no first moment")
    decay_rate: PositiveFloat = Field(0.8, description="exponent d of the second moment's decay, 1 - t^-d")

    refused_zero_stages: ClassVar[Mapping[int, str]] = {3: _SCATTERED}

    def state_fields(self, part: LocalMatrix) -> tuple[StateField, ...]:
        """The first moment, and the second moment or its means over rows and over columns."""
        first = StateField("first_moment")
        if part.smallest_side < FACTOR_FROM:
            return first, StateField("second_moment", is_apart=True)
        count = part.stacked[0]
        return (
            first,
            StateField("row_moment", (part.logical_rows,), (part.rows,), 0 if part.split == 0 else None),
            StateField(
                "column_moment", (count, part.logical_columns), (count, part.columns), 1 if part.split == 1 else None
            ),
        )

    def in_update(self, at_once: int, largest: int, is_fused: bool) -> int:
        """It works on one parameter at a time: gradient, square, direction and weights."""
        return 4 * min(at_once, largest)

    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """It sums over rows, columns and whole matrices, so it must know which ranks hold the other parts."""
        from brt_dist.optim.adafactor_update import AdafactorUpdate

        return AdafactorUpdate(
            [parameter.local for parameter in parameters],
            [LocalMatrix.of(parameter, sharding.tensor) for parameter in parameters],
            sharding,
            lr=self.learning_rate,
            momentum=self.momentum,
            decay_rate=self.decay_rate,
            factor_from=FACTOR_FROM,
        )
