"""Sequence parallel: between tensor parallel regions each rank holds a part of the positions (arXiv 2205.05198).

Tensors are position first, (n, ...) whole and (n/tp, ...) on a rank: hidden states over the tokens of the segment, the
recurrent state over its vectors.  A region begins with a gather and ends with a reduction that leaves each rank its
part; together they move as many bytes as the one all-reduce that they replace, and norms, residuals, gates and dropout
are computed and kept once instead of on every rank.

Megatron's own functions of this kind allocate on the current CUDA device; these run wherever their arguments are.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


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
    """Positions x (n/tp, ...) of all ranks -> (n, ...).  Without a gradient, like the next function."""
    whole, sent = _gather(x)
    sent.wait()
    return whole


def summed_part(x: Tensor) -> Tensor:
    """The result of `sum_to_parts`, without a gradient."""
    part, sent = _sum(x)
    sent.wait()
    return part


def sum_over_ranks(gradients: Sequence[Tensor], device: torch.device | None = None) -> None:
    """Add up, in place and in float32, the gradients of parameters that all ranks hold whole.  Collective.

    Each rank applies its copy to its own positions, so its gradient is that of these positions only.  A sum over tensor
    parallel ranks commutes with those over micro-batches and data parallel ranks, so one all-reduce for a step, of all
    gradients together, is enough: after these sums, and before the norm is taken.

    Args:
        gradients: the same ones on every rank, of any shapes and types.
        device: of the process group, if the gradients are not there (offloaded).
    """
    if not gradients:
        return
    group = parallel_state.get_tensor_model_parallel_group()
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    flat = torch.cat([gradient.reshape(-1).to(device, wide) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


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
        whole, sent = _gather(x)  # each transfer overlaps the product that does not need it
        of_whole = gradient @ weight
        sent.wait()
        of_x, sent = _sum(of_whole)
        of_weight = gradient.flatten(0, -2).t() @ whole.flatten(0, -2)
        sent.wait()
        return of_x, of_weight
