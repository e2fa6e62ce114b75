"""AdamW (arXiv 1711.05101), torch's."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat

from brt_dist.optim.base import Sharding
from brt_dist.optim.elementwise import Elementwise
from brt_dist.optim.groups import decay_groups

if TYPE_CHECKING:
    import torch

    from brt_dist.model.parameters import LogicalParameter


class AdamW(Elementwise):
    """AdamW: two moments for each weight, decoupled decay."""

    name: Literal["adamw"] = Field("adamw", description="AdamW (arXiv 1711.05101)")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay rates of the first and second moment")
    eps: PositiveFloat = Field(1e-8, description="added to the denominator for numerical stability")

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def broken_rules(self) -> Iterator[str]:
        """Decays of moments are in [0, 1)."""
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optimizer.betas={list(self.betas)} must each be at least 0 and less than 1; usual: [0.9, 0.95]"

    def in_update(self, at_once: int, largest: int, is_fused: bool) -> int:
        """Roots of the second moments."""
        return 0 if is_fused else at_once

    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """Torch's AdamW: on a CPU it reads and writes each element once, elsewhere one kernel steps many tensors."""
        import torch

        is_on_cpu = all(parameter.local.device.type == "cpu" for parameter in parameters)
        return torch.optim.AdamW(
            decay_groups(parameters, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            fused=is_on_cpu,
            foreach=not is_on_cpu,
        )
