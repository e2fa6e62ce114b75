"""Parameter groups of a torch optimizer: which parameters decay, and the learning rate of all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from brt_dist.model.parameters import LogicalParameter


def decay_groups(parameters: "Sequence[LogicalParameter]", weight_decay: float) -> list[dict[str, Any]]:
    """Weights of linear maps decay.  Embeddings (tokens, positions, states), norms, scales, gate biases do not."""
    decayed = [p.local for p in parameters if p.initializer.kind == "fan_in"]
    others = [p.local for p in parameters if p.initializer.kind != "fan_in"]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """Set the rate of the next update, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def split_groups(optimizer: "torch.optim.Optimizer", size: int) -> None:
    """Cut the groups so that each has at most `size` elements, or one parameter; in their order."""
    cut: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        filled = size  # of the last one in `cut`
        for parameter in group["params"]:
            if filled + parameter.numel() > size:
                cut.append({**group, "params": []})
                filled = 0
            cut[-1]["params"].append(parameter)
            filled += parameter.numel()
    optimizer.param_groups[:] = cut
