"""Attention to all given keys, and how heads are laid out.

Shapes: b streams, t blocks, h heads of this rank, W tokens of a block, E head size; heads before positions, so that
everything but the last two dimensions is a batch of matrix products.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from brt_dist.model.dropout import Mask
from brt_dist.model.norms import widened

Index: TypeAlias = tuple[slice, ...]


class Window(NamedTuple):
    """What the queries of each block see: the previous block and the block itself, (b, t, h, 2W, E)."""

    keys: Tensor
    values: Tensor


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    mask: Mask | None = None,
    at_once: int | None = None,
) -> Tensor:
    """softmax(q·k + bias) v, with the softmax in float32.  The backward pass recomputes the probabilities.

    There is no 1/sqrt(E): keys have unit length and queries the length of their head's learned scale.

    Args:
        queries: (..., h, n, E), of any type.
        keys, values: (..., h, m, E).
        bias: (h, n, m), shared by all streams and blocks, -inf where a key is not visible.
        mask: dropout of the probabilities, broadcast against (..., h, n, m); with `at_once`, as `Dropout.attention`
            draws it.
        at_once: about how many logits to work on at a time; None: all.

    Returns:
        (..., h, n, E), of the type of `values`.
    """
    queries = queries.to(keys.dtype)
    if at_once is not None and queries.shape[:-3] == keys.shape[:-3]:
        blocks = at_once // (queries.shape[-3] * queries.shape[-2] * keys.shape[-2])
        if len(parts := list(groups(queries.shape[:-3], blocks))) > 1:
            return cast(Tensor, _AttendInParts.apply(queries, keys, values, bias, mask, parts))
    return cast(Tensor, _Attend.apply(queries, keys, values, bias, mask))


def groups(outer: Sequence[int], at_once: int) -> Iterator[Index]:
    """Cuts streams (b,), or streams and blocks (b, t), into groups of about `at_once` streams or blocks."""
    streams, *others = outer
    blocks = others[0] if others else 1
    together = max(1, at_once // blocks)
    for stream in range(0, streams, together):
        group = slice(stream, stream + together)
        if not others:
            yield (group,)
            continue
        for block in range(0, blocks, max(1, at_once)):
            yield group, slice(block, block + max(1, at_once))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, mask: Mask | None
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.mask = mask
        return read(_logits(queries, keys, bias), values, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, bias = ctx.saved_tensors
        used, of_logits = slopes(_logits(queries, keys, bias), values, ctx.mask, gradient)
        of_bias = of_logits.sum_to_size(bias.shape) if bias is not None else None
        rounded = of_logits.to(queries.dtype)
        of_keys, of_values = rounded.transpose(-1, -2) @ queries, used.transpose(-1, -2) @ gradient
        return rounded @ keys, of_keys, of_values, of_bias, None


class _AttendInParts(torch.autograd.Function):
    """A group of streams and blocks after the other, so that logits stay in a CPU's cache."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        mask: Mask | None,
        parts: Sequence[Index],
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.mask, ctx.parts = mask, parts
        out = values.new_empty(*queries.shape[:-1], values.shape[-1])
        for part in parts:
            out[part] = read(_logits(queries[part], keys[part], bias), values[part], _of_streams(mask, part))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, bias = ctx.saved_tensors
        of_queries, of_keys, of_values = (x.new_empty(x.shape) for x in (queries, keys, values))
        of_bias = torch.zeros_like(bias) if bias is not None else None
        for part in ctx.parts:
            here, seen, given = queries[part], keys[part], gradient[part]
            mask = _of_streams(ctx.mask, part)
            used, of_logits = slopes(_logits(here, seen, bias), values[part], mask, given)
            if of_bias is not None:
                of_bias += of_logits.sum_to_size(of_bias.shape)
            rounded = of_logits.to(queries.dtype)
            of_queries[part] = rounded @ seen
            of_keys[part], of_values[part] = rounded.transpose(-1, -2) @ here, used.transpose(-1, -2) @ given
        return of_queries, of_keys, of_values, of_bias, None, None


def _of_streams(mask: Mask | None, part: Index) -> Mask | None:
    """A mask is the same for all blocks of a stream."""
    return mask and Mask(mask.dropped[part[0]], mask.rate)


def read(logits: Tensor, values: Tensor, mask: Mask | None) -> Tensor:
    """What is read of values (..., h, m, E) with softmax(logits), logits (..., h, n, m) -> (..., h, n, E)."""
    weights = logits.softmax(-1)
    return (weights if mask is None else mask(weights)).to(values.dtype) @ values


def slopes(logits: Tensor, values: Tensor, mask: Mask | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What values were weighted with, and the gradient of the logits, both (..., h, n, m).

    Args:
        logits, values, mask: as for `read`.
        gradient: of its result (..., h, n, E).
    """
    logits.requires_grad_()
    with torch.enable_grad():
        weights = logits.softmax(-1)
    of_weights = widened(gradient @ values.transpose(-1, -2))
    if mask is not None:
        of_weights = mask(of_weights)
    (of_logits,) = torch.autograd.grad(weights, logits, of_weights)
    used = weights.detach() if mask is None else mask(weights.detach())
    return used.to(values.dtype), of_logits


def _logits(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    logits = widened(queries @ keys.transpose(-1, -2))
    return logits if bias is None else logits.add_(bias)


def with_previous_block(blocks: Tensor, cache: Tensor, starts: Tensor) -> Tensor:
    """Put the previous block before each block.

    At the start of a document the previous block is zeros, and visible: the first tokens then attend to nothing in
    particular, as in the paper's code.

    Args:
        blocks: (b, t, h, W, E) keys or values.
        cache: (b, W, h, E) the same of the block before the first.
        starts: (b, t) bool, whether a document starts with the block.

    Returns:
        (b, t, h, 2W, E).
    """
    return cast(Tensor, _WithPreviousBlock.apply(blocks, cache, starts))


class _WithPreviousBlock(torch.autograd.Function):
    """Each direction allocates one tensor and fills it in place."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, cache: Tensor, starts: Tensor) -> Tensor:
        streams, count, heads, length, size = blocks.shape
        out = blocks.new_empty(streams, count, heads, 2 * length, size)
        previous, own = out.chunk(2, 3)
        own.copy_(blocks)
        previous[:, 0].copy_(cache.transpose(1, 2))
        previous[:, 1:].copy_(blocks[:, :-1])
        previous.masked_fill_(_of_blocks(starts), 0.0)
        ctx.save_for_backward(starts)
        ctx.cache_dtype = cache.dtype
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (starts,) = ctx.saved_tensors
        of_previous, of_own = gradient.chunk(2, 3)
        is_seen = _of_blocks(~starts)
        of_blocks, of_cache = of_own.clone(memory_format=torch.contiguous_format), None
        of_blocks[:, :-1].addcmul_(of_previous[:, 1:], is_seen[:, 1:].to(gradient.dtype))
        if ctx.needs_input_grad[1]:
            of_cache = (of_previous[:, 0] * is_seen[:, 0]).transpose(1, 2).to(ctx.cache_dtype)
        return of_blocks, of_cache, None


def _of_blocks(starts: Tensor) -> Tensor:
    """(b, t) for (b, t, h, n, E)."""
    return starts[:, :, None, None, None]


def split_heads(projected: Tensor, count: int, head_dim: int) -> tuple[Tensor, ...]:
    """Undo a fused projection: (..., n, b, h*count*E) -> `count` tensors (b, ..., h, n, E)."""
    return cast(tuple[Tensor, ...], _SplitHeads.apply(projected, count, head_dim))


class _SplitHeads(torch.autograd.Function):
    """Views; their gradients are laid out as the projection at once."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, count: int, head_dim: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape = projected.shape
        *blocks, length, streams, _ = projected.shape
        heads = projected.view(*blocks, length, streams, -1, count, head_dim)
        return heads.permute(-2, -4, *range(len(blocks)), -3, -5, -1).unbind(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return None, None, None
        parts = [torch.zeros_like(given[0]) if gradient is None else gradient for gradient in gradients]
        return merge_heads(parts).reshape(ctx.shape), None, None


def merge_heads(attended: Sequence[Tensor]) -> Tensor:
    """Attention results (b, ..., h, n, E) of several kinds -> (..., n, b, h*kinds*E), head slowest."""
    blocks = range(1, attended[0].dim() - 3)
    # in the order of the result before they are joined, so that they are copied once
    ordered = [kind.permute(*blocks, -2, 0, -3, -1) for kind in attended]
    return torch.stack(ordered, -2).flatten(-3)
