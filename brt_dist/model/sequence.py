"""Sequence parallel: between tensor parallel regions each rank holds a part of the positions (arXiv 2205.05198).

Tensors are position first, (n, ...) whole and (n/tp, ...) on a rank: hidden states over the tokens of the segment, the
recurrent state over its vectors.  A region begins with a gather and ends with a reduction that leaves each rank its
part; together they move as many bytes as the one all-reduce that they replace, and norms, residuals, gates and dropout
are computed and kept once instead of on every rank.

Megatron's own functions of this kind allocate on the current CUDA device; these run wherever their arguments are.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn


def own_part(x: Tensor) -> Tensor:
    """This rank's positions (n/tp, ...) of `x` (n, ...), which every rank holds whole."""
    group = parallel_state.get_tensor_model_parallel_group()
    return x.chunk(group.size())[group.rank()]


def sum_to_parts(x: Tensor) -> Tensor:
    """Sum of the `x` (n, ...) of all ranks, of which this rank gets its positions (n/tp, ...)."""
    return _SumToParts.apply(x)


def linear_of_parts(x: Tensor, weight: Tensor) -> Tensor:
    """Positions x (n/tp, ..., inputs) of this rank, weight (outputs/tp, inputs) -> (n, ..., outputs/tp).

    Keeps only the rank's part of `x` for backward and gathers again there.
    """
    return _LinearOfParts.apply(x, weight)


def gathered(x: Tensor) -> Tensor:
    """Positions x (n/tp, ...) of all ranks -> (n, ...).  Without a gradient, as the next."""
    whole, sent = _gather(x)
    sent.wait()
    return whole


def summed_part(x: Tensor) -> Tensor:
    """What `sum_to_parts` gives."""
    part, sent = _sum(x)
    sent.wait()
    return part


def sum_gradients(parameter: nn.Parameter) -> None:
    """Add up the gradient of `parameter`, a copy of which every rank applies to its own positions.

    The hook sees the gradient of a whole backward, however often the parameter was used; the sum is taken in float32.
    """
    parameter.register_hook(_summed)


def _summed(gradient: Tensor) -> Tensor:
    total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
    dist.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
    return total.to(gradient.dtype)


def _gather(x: Tensor) -> tuple[Tensor, Any]:
    group = parallel_state.get_tensor_model_parallel_group()
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group, async_op=True)


def _sum(x: Tensor) -> tuple[Tensor, Any]:
    group = parallel_state.get_tensor_model_parallel_group()
    part = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    return part, dist.reduce_scatter_tensor(part, x.contiguous(), group=group, async_op=True)


class _SumToParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return summed_part(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gathered(gradient)


class _LinearOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        whole, sent = _gather(x)
        sent.wait()
        return whole @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        whole, sent = _gather(x)  # each transfer runs beside the product that does not need it
        of_whole = gradient @ weight
        sent.wait()
        of_x, sent = _sum(of_whole)
        of_weight = gradient.flatten(0, -2).t() @ whole.flatten(0, -2)
        sent.wait()
        return of_x, of_weight
