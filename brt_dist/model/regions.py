"""Entering a tensor parallel region whose ranks do different work on the same input.

Megatron's layers enter a region each by themselves.  A mixer with several maps of one input enters once, and its maps
are plain (:class:`RegionLinear`): one collective each way however many maps there are.  With sequence parallel a rank
enters with its tokens and gets all of them.

Megatron's own functions of this kind allocate on the current CUDA device; these run wherever their arguments are.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.model.parameters import Initializer, declare, fan_in


def enter(x: Tensor, parallel: ModelParallelConfig) -> Tensor:
    """The tokens that all ranks of the region work on, (N, ...); the gradients of all ranks are added up.

    Args:
        x: (N, ...), the same on every rank; under sequence parallel this rank's tokens (N/tp, ...).
    """
    if parallel.tensor_model_parallel_size == 1:
        return x
    return _Gathered.apply(x) if parallel.sequence_parallel else _Copied.apply(x)


def shared(weight: Tensor, parallel: ModelParallelConfig) -> Tensor:
    """A parameter that every rank of a region holds whole, and applies to its own heads or channels.

    Its gradients are added up, in float32.  Under sequence parallel the model does that for all parameters that are
    held whole (`share_gradients`).
    """
    alone = parallel.tensor_model_parallel_size == 1 or parallel.sequence_parallel
    return weight if alone else _CopiedWeight.apply(weight)


class RegionLinear(nn.Module):
    """Within a region: (..., inputs) -> (..., outputs/tp), this rank's part of the outputs.

    Arguments as those of :class:`brt_dist.model.linear.ColumnLinear`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        parallel: ModelParallelConfig,
        initializer: Initializer | None = None,
        stacked: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs // parallel.tensor_model_parallel_size, inputs))
        declare(self.weight, initializer or fan_in(), partition_dim=0, stacked=stacked)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
        return total


class _CopiedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
        return total.to(gradient.dtype)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
        dist.all_gather_into_tensor(whole, x.contiguous(), group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        part = gradient.new_empty(gradient.shape[0] // group.size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(part, gradient.contiguous(), group=group)
        return part
