"""Attention within a window of tokens, and over states.

Shapes: b streams, t blocks, h heads of this rank, W tokens of a block, E head size; heads before positions, so that
everything but the last two dimensions is a batch of matrix products.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from brt_dist.model.dropout import Mask
from brt_dist.model.norms import widened


class Window(NamedTuple):
    """What the queries of each block see: the previous block and the block itself, (b, t, h, 2W, E)."""

    keys: Tensor
    values: Tensor


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, dropout: Mask | None = None
) -> Tensor:
    """softmax(q·k + bias) v, with the softmax in float32.  The one place to put a fused kernel.

    There is no 1/sqrt(E): keys have unit length and queries the length of their head's learned scale.

    Args:
        queries: (..., h, n, E), of any type.
        keys, values: (..., h, m, E).
        bias: (h, n, m), shared by all streams and blocks, -inf where a key is not visible.
        dropout: of the probabilities, broadcast against (..., h, n, m).

    Returns:
        (..., h, n, E), of the type of `values`.
    """
    logits = widened(queries.to(keys.dtype) @ keys.transpose(-1, -2))
    if bias is not None:
        logits = logits + bias
    probabilities = logits.softmax(-1)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return probabilities.to(values.dtype) @ values


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
    first = cache.to(blocks.dtype).transpose(1, 2).unsqueeze(1)
    previous = torch.cat([first, blocks[:, :-1]], 1)
    previous = previous.masked_fill(starts[:, :, None, None, None], 0.0)
    return torch.cat([previous, blocks], 3)


def split_heads(projected: Tensor, count: int, head_dim: int) -> tuple[Tensor, ...]:
    """Undo a fused projection: (..., n, b, h*count*E) -> `count` tensors (b, ..., h, n, E)."""
    *blocks, length, streams, _ = projected.shape
    heads = projected.view(*blocks, length, streams, -1, count, head_dim)
    order = (-2, -4, *range(len(blocks)), -3, -5, -1)
    return heads.permute(*order).unbind(0)


def merge_heads(attended: Sequence[Tensor]) -> Tensor:
    """Attention results (b, ..., h, n, E) of several kinds -> (..., n, b, h*kinds*E), head slowest."""
    kinds = torch.stack(list(attended), -2)  # (b, ..., h, n, kinds, E)
    blocks = range(1, kinds.dim() - 4)
    merged = kinds.permute(*blocks, -3, 0, -4, -2, -1)
    return merged.reshape(*merged.shape[:-3], -1)
