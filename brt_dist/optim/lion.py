"""Lion (arXiv 2302.06675): each weight moves by the learning rate, in the direction of the sign of a moving average."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat

from brt_dist.optim.elementwise import Elementwise

if TYPE_CHECKING:
    import torch


class Lion(Elementwise):
    """Lion: one moment for each weight, steps of one size, decoupled decay."""

    name: Literal["lion"] = Field("lion", description="Lion (arXiv 2302.06675)")
    learning_rate: PositiveFloat = Field(
        1e-4, description="peak learning rate, reached at the end of warm-up; 3 to 10 times smaller than for AdamW"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.99), description="weight of the momentum in the update direction; decay of the momentum"
    )

    state_names: ClassVar[tuple[str, ...]] = ("momentum",)

    def broken_rules(self) -> Iterator[str]:
        """Shares and decays are in [0, 1)."""
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optimizer.betas={list(self.betas)} must each be at least 0 and less than 1; usual: [0.9, 0.99]"

    def update(
        self,
        weight: "torch.Tensor",
        gradient: "torch.Tensor",
        state: "Mapping[str, torch.Tensor]",
        rate: float,
        decay: float,
    ) -> None:
        """Algorithm 2 of the paper."""
        share, keep = self.betas
        momentum = state["momentum"]
        direction = (momentum * share).add_(gradient, alpha=1 - share).sign_()
        weight.mul_(1 - rate * decay).sub_(direction, alpha=rate)
        momentum.mul_(keep).add_(gradient, alpha=1 - keep)
