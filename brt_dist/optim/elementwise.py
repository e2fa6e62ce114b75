"""Optimizers whose step of an element depends only on that element, so that parameters can be cut anywhere.

Such a kind only names its state and says in `update` how an element moves.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat

from brt_dist.optim.base import LocalMatrix, OptimizerKind, Sharding, StateField
from brt_dist.optim.groups import decay_groups

if TYPE_CHECKING:
    import torch

    from brt_dist.model.parameters import LogicalParameter


class Elementwise(OptimizerKind):
    """A kind that looks at one element at a time."""

    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay, of linear layers only")

    is_elementwise: ClassVar[bool] = True
    state_names: ClassVar[tuple[str, ...]] = ()
    """what it remembers of each element, zero at first"""

    def state_fields(self, part: LocalMatrix) -> tuple[StateField, ...]:
        """The state in `state_names`, all laid out like the parameter."""
        return tuple(StateField(name) for name in self.state_names)

    def update(
        self,
        weight: "torch.Tensor",
        gradient: "torch.Tensor",
        state: "Mapping[str, torch.Tensor]",
        rate: float,
        decay: float,
    ) -> None:
        """One update of `weight` and `state`, in place; all float32 and of one shape.

        Args:
            rate: the learning rate of this update.
            decay: the weight decay, 0 for parameters that do not decay.
        """
        raise NotImplementedError

    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """Calls :meth:`update` for each tensor that DeepSpeed gives it: a parameter, or a range of ZeRO's flat one."""
        from brt_dist.optim.elementwise_update import ElementwiseUpdate

        groups = decay_groups(parameters, self.weight_decay)
        return ElementwiseUpdate(groups, self.update, self.state_names, lr=self.learning_rate)
