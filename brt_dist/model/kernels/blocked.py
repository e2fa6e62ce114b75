"""Sub-blocks: the queries of a quarter of a block meet the 1.25 W keys that one of them sees, instead of 2 W.

It works through a few blocks at a time, so that probabilities stay in a CPU's cache.  For the backward pass it keeps
only queries, keys and values, and recomputes the probabilities, as flash attention does (arXiv 2205.14135).
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from brt_dist.model.attention import Index, Window, attend, groups, read, slopes
from brt_dist.model.dropout import Mask
from brt_dist.model.kernels.base import AttentionKernel
from brt_dist.model.positions import banded
from brt_dist.model.shapes import CACHED_LOGITS as LOGITS
from brt_dist.model.shapes import sub_block


class Blocked(AttentionKernel):
    """Window attention in sub-blocks, for CPUs."""

    def __call__(self, queries: Tensor, window: Window, visible: Tensor, mask: Mask | None) -> Tensor:
        rows = sub_block(queries.shape[3])
        bias = banded(visible, rows)
        if rows == queries.shape[3]:
            return attend(queries, *window, bias, mask, LOGITS)
        return cast(Tensor, _Blocked.apply(queries.to(window.keys.dtype), *window, bias, mask))

    def everywhere(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries, keys, values, at_once=LOGITS)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, mask: Mask | None) -> Tensor:
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.mask = mask
        out = torch.empty_like(queries, dtype=values.dtype)
        for here, seen, part in _pieces(queries, bias, ctx.mask):
            out[here] = read(_logits(queries[here], keys[seen], bias), values[seen], part)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, bias = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_queries, of_bias = torch.empty_like(queries), torch.zeros_like(bias)
        wide = torch.promote_types(keys.dtype, torch.float32)  # a key is seen from several sub-blocks
        of_keys, of_values = (torch.zeros_like(x, dtype=wide) for x in (keys, values))
        for here, seen, part in _pieces(queries, bias, ctx.mask):
            used, of_logits = slopes(_logits(queries[here], keys[seen], bias), values[seen], part, gradient[here])
            of_bias += of_logits.sum_to_size(bias.shape)
            rounded = of_logits.to(queries.dtype)
            of_queries[here] = rounded @ keys[seen]
            _add_product(of_keys[seen], rounded.transpose(-1, -2), queries[here])
            _add_product(of_values[seen], used.transpose(-1, -2), gradient[here])
        return of_queries, of_keys.to(keys.dtype), of_values.to(values.dtype), of_bias, None


def _logits(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """q·k + bias, float32 or wider."""
    logits = bias.expand(*queries.shape[:-2], *bias.shape[-2:]).clone(memory_format=torch.contiguous_format)
    _add_product(logits, queries, keys.transpose(-1, -2))
    return logits


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, without an extra pass if the types agree."""
    if total.dtype != one.dtype:
        total += one @ other
        return
    batch, *factors = (x.view(-1, *x.shape[-2:]) for x in (total, one, other))
    batch.baddbmm_(*factors)


def _pieces(queries: Tensor, bias: Tensor, mask: Mask | None) -> Iterator[tuple[Index, Index, Mask | None]]:
    """Where the queries of a piece are, where the keys that they see are, and the mask between them."""
    heads, window = queries.shape[2:4]
    rows, columns = bias.shape[-2:]
    for group in groups(queries.shape[:2], LOGITS // (heads * rows * columns)):
        for first in range(0, window, rows):
            here, seen = slice(first, first + rows), slice(first, first + columns)
            part = None if mask is None else Mask(mask.dropped[group[0], :, :, here, seen], mask.rate)
            yield (*group, slice(None), here), (*group, slice(None), seen), part
