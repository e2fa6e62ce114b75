"""Attention in Triton, for GPUs: flash attention (arXiv 2205.14135) that works on visible tiles only.

It differs from other such kernels in the bias by distance, whose gradient is a sum over streams and blocks.  The sum
has a fixed order, so that a resumed run equals the uninterrupted one bit for bit.  (FlexAttention uses atomics, which
is not reproducible, and slow because all queries add to the same W numbers.)
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from brt_dist.model.attention import Window, attend
from brt_dist.model.dropout import Mask
from brt_dist.model.kernels.base import AttentionKernel
from brt_dist.model.kernels.plain import Plain

if TYPE_CHECKING:
    from brt_dist.model.kernels.triton_attention import Sizes

_HEADS = (16, 32, 64, 128, 256)  # sizes that the kernels have
_HALVES = (torch.bfloat16, torch.float16)  # float32 products are float32 only without tensor cores, as in plain
_INTERPRETED = "TRITON_INTERPRET"  # Triton's: kernels then run on a CPU, very slowly, for tests


class Triton(AttentionKernel):
    """Window attention and attention to states; falls back to plain if `is_possible` says no."""

    def __call__(self, queries: Tensor, window: Window, visible: Tensor, mask: Mask | None) -> Tensor:
        if not is_possible(queries):
            return Plain()(queries, window, visible, mask)
        heads, length = queries.shape[2:4]
        bias = visible.squeeze(1).expand(heads, length)
        return cast(Tensor, _Fused.apply(queries.to(window.keys.dtype), *window, bias, mask))

    def everywhere(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if not is_possible(queries):
            return attend(queries, keys, values)
        outer = queries.dim() - 3  # dimensions before heads
        queries, keys, values = (x if outer == 2 else x.unsqueeze(1) for x in (queries.to(keys.dtype), keys, values))
        found = cast(Tensor, _Fused.apply(queries, keys, values, None, None))
        return found if outer == 2 else found.squeeze(1)


def is_possible(queries: Tensor) -> bool:
    """Whether there is a kernel for these queries (..., h, n, E)."""
    if os.environ.get(_INTERPRETED) != "1" and not (queries.is_cuda and queries.dtype in _HALVES):
        return False
    return installed() and queries.shape[-1] in _HEADS and queries.dtype != torch.float64


@cache
def installed() -> bool:
    return find_spec("triton") is not None


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, the result and one number for each query."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, mask: Mask | None
    ) -> Tensor:
        from brt_dist.model.kernels import triton_attention as kernels

        sizes = _sizes(queries, keys, bias)
        queries, keys, values = (_rows_together(x) for x in (queries, keys, values))
        dropped, factor = _dropped(mask)
        out, logarithms = kernels.forward(sizes, queries, keys, values, bias, dropped, factor)
        ctx.save_for_backward(queries, keys, values, bias, dropped, out, logarithms)
        ctx.sizes, ctx.factor = sizes, factor
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from brt_dist.model.kernels import triton_attention as kernels

        queries, keys, values, bias, dropped, out, logarithms = ctx.saved_tensors
        found = kernels.backward(
            ctx.sizes, queries, keys, values, bias, dropped, ctx.factor, out, logarithms, _rows_together(gradient),
            needs_bias=ctx.needs_input_grad[3],
        )  # fmt: skip
        return (*found, None)


def _sizes(queries: Tensor, keys: Tensor, bias: Tensor | None) -> "Sizes":
    from brt_dist.model.kernels.triton_attention import Sizes

    streams, blocks, heads, length, size = queries.shape
    return Sizes(streams, blocks, heads, length, keys.shape[3], size, is_band=bias is not None)


def _rows_together(x: Tensor) -> Tensor:
    """With the last dimension contiguous; the others may lie in any order."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _dropped(mask: Mask | None) -> tuple[Tensor | None, float]:
    """The mask (b, h, n, m) in bytes, and the factor of what is kept."""
    if mask is None:
        return None, 1.0
    return mask.dropped.squeeze(1).contiguous().view(torch.uint8), mask.factor
