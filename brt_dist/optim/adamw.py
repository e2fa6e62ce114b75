"""AdamW (arXiv 1711.05101), torch's."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from brt_dist.optim.base import MatrixPart, OptimizerKind, Sharding, StateField
from brt_dist.optim.groups import decay_groups

if TYPE_CHECKING:
    import torch

    from brt_dist.model.parameters import LogicalParameter


class AdamW(OptimizerKind):
    """AdamW: two moments for each weight, decoupled decay."""

    name: Literal["adamw"] = Field("adamw", description="AdamW (arXiv 1711.05101)")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")
    eps: PositiveFloat = Field(1e-8, description="added to the denominator")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled decay, of the weights of linear maps")

    def broken_rules(self) -> Iterator[str]:
        """Decays of moments are in [0, 1)."""
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optimizer.betas={list(self.betas)} must each be at least 0 and less than 1; usual: [0.9, 0.95]"

    def state_fields(self, part: MatrixPart) -> tuple[StateField, ...]:
        """The two moments."""
        return StateField("exp_avg"), StateField("exp_avg_sq")

    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """It works on each element alone, so how ZeRO cuts the parameters makes no difference."""
        import torch

        return torch.optim.AdamW(
            decay_groups(parameters, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            foreach=True,
        )
