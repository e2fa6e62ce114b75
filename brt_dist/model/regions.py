"""Entering a tensor parallel region whose ranks do different work on the same input.

Megatron's layers each enter a region separately.  A mixer with several maps of one input enters once, and its maps
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

from brt_dist.model.linear import gather
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

    Its gradients are added up in float32.  Under sequence parallel this happens once per step, for all parameters that
    are held whole (`sequence.sum_over_ranks`).
    """
    alone = parallel.tensor_model_parallel_size == 1 or parallel.sequence_parallel
    return weight if alone else _CopiedWeight.apply(weight)


def leave(x: Tensor, parallel: ModelParallelConfig) -> Tensor:
    """All channels (N, ..., D) of this rank's (N, ..., D/tp); under sequence parallel of its tokens (N/tp, ..., D)."""
    if parallel.tensor_model_parallel_size == 1:
        return x
    return _ToTokens.apply(x) if parallel.sequence_parallel else gather(x)


def total(x: Tensor, parallel: ModelParallelConfig) -> Tensor:
    """The sum over all ranks, each of which uses it in its own channels."""
    return x if parallel.tensor_model_parallel_size == 1 else _Total.apply(x)


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


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _Copied.backward(ctx, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Copied.backward(ctx, gradient)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        columns = _exchanged(x.unflatten(0, (ranks, -1)))  # (tp, N/tp, ..., D/tp), of these tokens
        return columns.movedim(0, -2).flatten(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        return _exchanged(gradient.unflatten(-1, (ranks, -1)).movedim(-2, 0)).flatten(0, 1)


def _exchanged(x: Tensor) -> Tensor:
    """Sends part i of `x` (tp, ...) to rank i; returns the received parts, by rank."""
    sent = x.contiguous()
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent, group=parallel_state.get_tensor_model_parallel_group())
    return came


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
