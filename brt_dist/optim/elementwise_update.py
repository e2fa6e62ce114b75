"""The torch optimizer around an update rule that looks at one element at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Update: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Tensor], float, float], None]


class ElementwiseUpdate(torch.optim.Optimizer):
    """Calls a rule for every tensor that has a gradient.

    Args:
        groups: parameters, each group with its `weight_decay`.
        update: called with a tensor, its gradient, its state, the learning rate and the weight decay.
        state_names: keys of that state; float32 tensors shaped as the tensor, zero at first.
        lr: learning rate; set `group["lr"]` before each step.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], update: Update, state_names: Sequence[str], *, lr: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._update, self._names = update, tuple(state_names)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter."""
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                state = self.state[tensor]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state |= {name: torch.zeros_like(tensor, dtype=torch.float32) for name in self._names}
                state["step"] += 1
                self._update(tensor, tensor.grad, state, group["lr"], group["weight_decay"])
