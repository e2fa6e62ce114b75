"""Normalisations.  Statistics are taken in float32 (or wider) whatever the type of the activations."""

from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from brt_dist.model import rows
from brt_dist.model.parameters import constant, declare, ones
from brt_dist.model.remade import Remade

EPSILON = 1e-6


def widened(x: Tensor) -> Tensor:
    """`x` in a type of at least 32 bits."""
    if x.dtype in (torch.float32, torch.float64):
        return x  # called thousands of times in a step
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-6) * weight over the last dimension; no mean is subtracted, there is no bias.

    The result has the type of the weight: under bf16 the float32 state enters the matrix products as bf16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        declare(self.weight, ones())

    def forward(self, x: Tensor, into: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The norm of x (..., D), or into(norm), whose backward pass makes the norm again instead of keeping it."""
        if into is None:
            return rms_normed(x, self.weight)
        remade = Remade()
        normed = remade.made(rms_normed, x, self.weight)
        with remade.read():
            return into(normed)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias over the last dimension, as torch's; of the weight's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        declare(self.weight, ones())
        self.bias = nn.Parameter(torch.empty(width))
        declare(self.bias, constant(0.0))

    def forward(self, x: Tensor) -> Tensor:
        given = (widened(value) for value in (x, self.weight, self.bias))
        wide, weight, bias = given
        return nn.functional.layer_norm(wide, wide.shape[-1:], weight, bias).to(self.weight.dtype)


def rms_normed(x: Tensor, weight: Tensor) -> Tensor:
    """What :class:`RMSNorm` computes with this weight."""
    return cast(Tensor, _Normalised.apply(x, weight, x.shape[-1], weight.dtype))


def unit_length(x: Tensor, scale: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Keys or queries of a head (..., E) on the unit sphere, times `scale`: x / sqrt(sum(x²) + 1e-6) * scale.

    dtype: of the result; float32 if not given.
    """
    return cast(Tensor, _Normalised.apply(x, scale, 1, dtype or torch.promote_types(x.dtype, torch.float32)))


class _Normalised(torch.autograd.Function):
    """x / sqrt(sum(x²)/count + 1e-6) * weight; keeps `x` and one number for each vector.

    Norms cost passes over memory, one per operation, so there are only a few operations; factors with one number per
    vector are combined first.  The result is contiguous, even if `x` is a strided view.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, count: int, dtype: torch.dtype) -> Tensor:
        ctx.count = count
        if (kernels := _fused(x, weight)) is not None:
            out, inverse = kernels.normalise(x, weight, count, EPSILON, dtype)
            ctx.save_for_backward(x, weight, inverse)
            return cast(Tensor, out)
        wide = widened(x)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = (squares if count == 1 else squares.div_(count)).add_(EPSILON).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out = torch.mul(wide, _of_vectors(inverse, weight), out=wide.new_empty(x.shape))
        return (out.mul_(widened(weight)) if _is_of_columns(weight) else out).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if (kernels := _fused(x, weight)) is not None:
            of_x, of_weight = kernels.normalise_backward(gradient, x, weight, inverse, ctx.count)
            return of_x, None if weight is None else of_weight.to(weight.dtype), None, None
        wide, of_out, of_weight = widened(x), widened(gradient), None
        products, of_x = of_out * wide, of_out * _of_vectors(inverse, weight)
        if _is_of_columns(weight):
            columns = widened(weight)
            if columns.dim() == 1:
                of_weight = inverse.flatten() @ products.flatten(0, -2)
                along = products @ columns.unsqueeze(-1)  # how much a vector's length changes the loss
            else:
                of_weight = (products * inverse).sum_to_size(columns.shape)
                along = (products * columns).sum(-1, True)
            of_x *= columns
        else:
            along = products.sum(-1, True)
            if weight is not None:
                of_weight = (along * inverse).sum_to_size(weight.shape)
                along = along * widened(weight)
        of_x.addcmul_(wide, along * inverse.pow(3), value=-1 / ctx.count)
        return of_x.to(x.dtype), None if weight is None else of_weight.to(weight.dtype), None, None


def _fused(x: Tensor, weight: Tensor | None) -> Any | None:
    """The kernels, for weights of columns or of heads; there are none for weights of both."""
    return None if _is_of_columns(weight) and weight.numel() > weight.shape[-1] else rows.fused(x)


def _is_of_columns(weight: Tensor | None) -> TypeGuard[Tensor]:
    return weight is not None and weight.shape[-1] > 1


def _of_vectors(inverse: Tensor, weight: Tensor | None) -> Tensor:
    """The factor of all elements of a vector: the inverse of its length, times a weight of its head."""
    return inverse if weight is None or _is_of_columns(weight) else inverse * widened(weight)
