"""FlexAttention: torch compiles one fused kernel for CUDA from the band and the position bias.

It has not been run on a GPU yet.  On a CPU it runs eagerly and without gradients, which is slow and meant for tests.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from brt_dist.model.attention import Window
from brt_dist.model.dropout import Mask
from brt_dist.model.kernels.base import AttentionKernel
from brt_dist.model.kernels.plain import Plain

_SMALLEST_HEAD = 16  # of the compiled kernel, whose head sizes are powers of two

Change = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Flex(AttentionKernel):
    """Window attention by FlexAttention; plain where that cannot: see `is_possible`."""

    def __call__(self, queries: Tensor, window: Window, visible: Tensor, mask: Mask | None) -> Tensor:
        if not is_possible(queries, mask):
            return Plain()(queries, window, visible, mask)
        streams, blocks, heads, length, _ = queries.shape
        attended = _compute(queries.is_cuda)(
            queries.to(window.keys.dtype).flatten(0, 1),
            window.keys.flatten(0, 1),
            window.values.flatten(0, 1),
            score_mod=with_bias(visible.squeeze(1).expand(heads, length)),
            block_mask=_band(length, queries.device),
            scale=1.0,
        )
        return cast(Tensor, attended.unflatten(0, (streams, blocks)))


def is_possible(queries: Tensor, mask: Mask | None) -> bool:
    """Not with dropout, nor with gradients on a CPU, nor with head sizes that the compiled kernel does not have."""
    size = queries.shape[-1]
    if queries.device.type == "cpu" and queries.requires_grad:
        return False
    return mask is None and (not queries.is_cuda or (size >= _SMALLEST_HEAD and size & (size - 1) == 0))


def with_bias(bias: Tensor) -> Change:
    """Adds to a logit what `bias` (h, W) has for the distance, the farthest of the visible keys first."""
    last = bias.shape[1] - 1

    def score(logit: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # keys that the query does not see are masked, whatever stands here
        return logit + bias[head, (key - query).clamp(0, last)]

    return score


def within(window: int) -> Visible:
    """The W keys before a query: those of [previous block; block] at its own place and the W - 1 after that."""

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= query) & (key < query + window)

    return is_visible


@cache
def _compute(is_compiled: bool) -> Callable[..., Any]:
    compute: Callable[..., Any] = flex_attention
    return torch.compile(compute, dynamic=False) if is_compiled else compute


@cache
def _band(window: int, device: torch.device) -> BlockMask:
    """The parts of (W, 2W) that hold visible keys; the same for all streams, blocks and heads."""
    return create_block_mask(within(window), None, None, window, 2 * window, device=str(device))
