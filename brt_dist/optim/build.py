"""The update rule of a run, over the parameters of this rank."""

from collections.abc import Sequence
from typing import Any

import torch

from brt_dist.config.schema import Config
from brt_dist.model.parameters import LogicalParameter
from brt_dist.optim.adafactor import Adafactor, MatrixPart
from brt_dist.parallel.layout import Layout, MegatronGroups


def build_optimizer(parameters: Sequence[LogicalParameter], config: Config, layout: Layout) -> torch.optim.Optimizer:
    """AdamW or Adafactor, to be wrapped by DeepSpeed.  The learning rate is set before each step.

    Args:
        parameters: those of this rank, in the same order on all ranks that share a stage.
    """
    settings = config.optimizer
    if settings.name == "adamw":
        return torch.optim.AdamW(
            _adamw_groups(parameters, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            foreach=True,
        )
    sharded = config.parallel.zero_stage > 0
    return Adafactor(
        [parameter.local for parameter in parameters],
        [_matrix_part(parameter, layout) for parameter in parameters],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        decay_rate=settings.decay_rate,
        flat=sharded,
        shards=layout.data if sharded else 1,
        shard=layout.data_rank if sharded else 0,
        data_group=MegatronGroups.get_data_parallel_group(),
        tensor_group=MegatronGroups.get_tensor_model_parallel_group(),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _adamw_groups(parameters: Sequence[LogicalParameter], weight_decay: float) -> list[dict[str, Any]]:
    """The weights of linear maps decay.  Tables (tokens, positions, states), norms, scales and gate biases do not."""
    decayed = [p.local for p in parameters if p.initializer.kind == "fan_in"]
    others = [p.local for p in parameters if p.initializer.kind != "fan_in"]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _matrix_part(parameter: LogicalParameter, layout: Layout) -> MatrixPart:
    return MatrixPart(
        shape=tuple(parameter.local.shape),
        split=parameter.partition_dim,
        tensor_parallel=layout.tensor,
        logical_rows=parameter.shape[0],
        stacked=parameter.stacked,
    )
