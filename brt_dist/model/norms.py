"""Normalisations.  Statistics are taken in float32 (or wider) whatever the type of the activations."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from brt_dist.model import rows
from brt_dist.model.parameters import constant, declare, ones

EPSILON = 1e-6


def widened(x: Tensor) -> Tensor:
    """`x` in a type of at least 32 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-6) * weight over the last dimension; no mean is subtracted, there is no bias.

    The result has the type of the weight: under bf16 the float32 state enters the matrix products as bf16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        declare(self.weight, ones())

    def forward(self, x: Tensor) -> Tensor:
        return rms_normed(x, self.weight)


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
    return cast(Tensor, _Normalised.apply(x, x, weight, x.shape[-1], weight.dtype))


def unit_length(x: Tensor, scale: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Keys or queries of a head (..., E) on the unit sphere, times `scale`: x / sqrt(sum(x²) + 1e-6) * scale.

    dtype: of the result; float32 if not given.
    """
    return cast(Tensor, _Normalised.apply(x, x, scale, 1, dtype or torch.promote_types(x.dtype, torch.float32)))


class _Normalised(torch.autograd.Function):
    """x / sqrt(sum(x²)/count + 1e-6) * weight; keeps `x` and one number for each vector.

    `x` is given twice, as the vector and as what its length is taken of.  Autograd then adds the two gradients to
    others of `x` one by one, as it would for plain operations, which keeps runs of 0.1.0 what they were to the bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, measured: Tensor, weight: Tensor | None, count: int, dtype: torch.dtype) -> Tensor:
        ctx.count = count
        if (kernels := rows.fused(x)) is not None:
            out, inverse = kernels.normalise(x, weight, count, EPSILON, dtype)
            ctx.save_for_backward(x, weight, inverse)
            return cast(Tensor, out)
        wide = widened(x)
        squares = wide.square()
        mean = squares.mean(-1, True) if count > 1 else squares.sum(-1, True)
        inverse = torch.rsqrt(mean + EPSILON)
        ctx.save_for_backward(x, weight, inverse)
        out = torch.mul(wide, inverse, out=squares)
        return (out if weight is None else out.mul_(widened(weight))).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if (kernels := rows.fused(x)) is not None:
            of_x, of_weight = kernels.normalise_backward(gradient, x, weight, inverse, ctx.count)
            return of_x, None, None if weight is None else of_weight.to(weight.dtype), None, None
        wide, of_unit, of_weight = widened(x), widened(gradient), None
        if weight is not None:
            of_weight = (of_unit * (wide * inverse)).sum_to_size(weight.shape).to(weight.dtype)
            of_unit = of_unit * widened(weight)
        of_inverse = (of_unit * wide).sum(-1, True)
        slope = -of_inverse * inverse.pow(3) / ctx.count
        if x.dtype == wide.dtype:
            return of_unit * inverse, wide * slope, of_weight, None, None
        return (of_unit * inverse).addcmul_(wide, slope).to(x.dtype), None, of_weight, None, None
