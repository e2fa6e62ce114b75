"""Reduces gradients over data parallel ranks to the rank that updates them, during the backward pass.

DeepSpeed's ZeRO-1 with bf16 weights keeps an fp32 sum of each gradient, and would reduce all of them to all ranks after
the backward pass: twice the traffic, with nothing to hide it.  Here a bucket of sums is scattered as soon as its last
gradient of the step is computed.  The host only starts this; the device waits, before the norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """Gradients that are reduced together.

    Attributes:
        parameters: whose gradients they are.
        whole: sums of all of them, flat and padded, fp32.
        own: the range of `whole` that this rank updates, a view; equally long on all ranks, in their order.
        is_late: whether to wait for the end of the backward pass, because something must still be added to the sums.
    """

    parameters: Sequence[Tensor]
    whole: Tensor
    own: Tensor
    is_late: bool = False


class Reduction:
    """Reduces buckets one after the other, in the same order on all ranks.

    A complete bucket waits for those before it.  If a weight gets no gradient on one rank but does on another, its
    bucket stays incomplete there until the backward pass ends; the order is still the same.

    Args:
        buckets: of this rank, in the order in which backward completes them.  Make them after whatever sums the
            gradients, whose hooks must run first.
        micro_batches: of a step; a gradient is complete after this many backward passes.
        group: the data parallel ranks.
        dtype: in which to sum.
        scatter: reduce to the rank that updates; otherwise to all.
    """

    def __init__(
        self, buckets: Sequence[Bucket], micro_batches: int, group: Any, dtype: torch.dtype, scatter: bool
    ) -> None:
        self._buckets, self._micro_batches = buckets, micro_batches
        self._group, self._ranks, self._rank = group, dist.get_world_size(group), dist.get_rank(group)
        self._dtype, self._scatter = dtype, scatter
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, place=place: self._made(place))
            for place, bucket in enumerate(buckets)
            for parameter in bucket.parameters
        ]
        self._begin()

    def close(self) -> None:
        """Let go of the parameters."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def finish(self) -> None:
        """Reduce the remaining buckets; then each `own` has the mean over all ranks.  Collective."""
        while self._next < len(self._buckets):
            self._start()
        for bucket, handle, reduced in self._started:
            handle.wait()
            if reduced.data_ptr() != bucket.own.data_ptr():
                bucket.own.copy_(reduced)
            bucket.own.div_(self._ranks)
        self._begin()

    def _begin(self) -> None:
        """A new step."""
        self._left = [len(bucket.parameters) * self._micro_batches for bucket in self._buckets]
        self._started: list[tuple[Bucket, Any, Tensor]] = []
        self._next = 0  # bucket to start

    def _made(self, place: int) -> None:
        """A gradient of a bucket was computed and added to its sum."""
        self._left[place] -= 1
        while self._next < len(self._buckets) and self._may_start(self._next):
            self._start()

    def _may_start(self, place: int) -> bool:
        return not self._left[place] and not self._buckets[place].is_late

    @torch.no_grad()
    def _start(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        if self._ranks == 1:
            return
        whole = bucket.whole.to(self._dtype)
        own = whole.chunk(self._ranks)[self._rank]
        if self._scatter:
            handle = dist.reduce_scatter_single(own, whole, group=self._group, async_op=True)
        else:
            handle = dist.all_reduce(whole, group=self._group, async_op=True)
        self._started.append((bucket, handle, own))
