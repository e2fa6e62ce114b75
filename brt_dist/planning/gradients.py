"""Gradients of a rank, and the buffers through which they are reduced, from moment to moment of a step.

As in DeepSpeed.  `planning.memory` has what is there when the update begins; this file has the changes around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from brt_dist.config.schema import Config
from brt_dist.config.zero import BUCKET, SCATTERED_BUCKET
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.planning.execution import Execution
from brt_dist.planning.memory import itemsize_of, shards_of

_MASTER = 4  # bytes of a float32
_WITHOUT_ZERO = 500_000_000  # elements that DeepSpeed reduces together without ZeRO


class Bytes(NamedTuple):
    """On the device at a moment."""

    gradients: int
    buckets: int


@dataclass(frozen=True)
class GradientMemory:
    """For the micro-batch that needs most; if it is the only one, it also creates the gradients.

    Attributes:
        before: until its loss is known.
        backward: during its backward pass, without `made`.
        made: what each parameter adds once its gradient is computed.
        after: when backward is done: gradients are reduced, weights updated and gathered, with temporaries.
        gathered: bytes of weights that ZeRO-3 gathers together, a second copy until the forward pass used all of them.
    """

    before: Bytes
    backward: Bytes
    made: int
    after: tuple[Bytes, ...]
    gathered: int = 0


@dataclass(frozen=True)
class Parameters:
    """Elements of the parameters of a rank.

    Attributes:
        layers: of each of them, in order, without the token embedding.
        table: of the embedding; 0 on a stage that has none.
    """

    layers: Sequence[int]
    table: int

    @cached_property
    def count(self) -> int:
        return sum(self.layers) + self.table

    @cached_property
    def largest(self) -> int:
        return max(max(self.layers, default=0), self.table)


def gradient_memory(config: Config, held: Parameters, kept: Bytes, execution: Execution) -> GradientMemory:
    """Of a rank.

    Args:
        config: on the layout.
        held: its parameters.
        kept: when the update begins, as `planning.memory` says.
        execution: of the device.
    """
    parallel, step = config.parallel, _Step(config, held, kept.buckets, execution)
    if parallel.zero.offload_optimizer != "none":  # the update is in host memory
        return step.offloaded(kept)
    if scatters_sums(config):
        return step.of_sums()
    if parallel.zero_stage == 3:
        return step.of_split_weights()
    if parallel.zero_stage == 0:
        return step.without_zero()
    return step.of_whole() if parallel.zero_stage == 1 and not parallel.zero.overlap else step.in_buckets()


class _Step:
    """The moments for each way to reduce gradients."""

    def __init__(self, config: Config, held: Parameters, buckets: int, execution: Execution) -> None:
        self.config, self.zero, self.held, self.buckets = config, config.parallel.zero, held, buckets
        self.itemsize, self.shards, self.count = itemsize_of(config), shards_of(config), held.count
        self.whole, self.own = self.itemsize * self.count, _MASTER * self.count // self.shards
        self.several = config.micro_batches > 1
        self.copies, self.is_fused = execution.copies_collectives and config.parallel.data > 1, execution.steps_in_place
        self.group = max(held.count - held.table, held.table)  # what decays, or what does not

    def offloaded(self, kept: Bytes) -> GradientMemory:
        """The update is in host memory; then gradients on the device are gone."""
        gather = 0 if self.config.parallel.zero_stage == 3 else self._gather()
        return GradientMemory(kept, kept, 0, (kept, Bytes(0, kept.buckets + gather)))

    def without_zero(self) -> GradientMemory:
        """Gradients are concatenated to be reduced."""
        copied = _MASTER * min(_WITHOUT_ZERO, self.count) if self.config.parallel.data > 1 else 0
        before = Bytes(self.whole if self.several else 0, 0)
        after = Bytes(self.whole, copied), Bytes(self.whole, self._update(self.group))
        return GradientMemory(before, before, self._made(), after)

    def of_sums(self) -> GradientMemory:
        """Each bucket of float32 sums is reduced as soon as it is complete, and a copy lasts until the update."""
        each = 0
        if self.shards > 1 and self.zero.reduce_dtype == "bf16":
            each = 2
        elif self.copies:
            each = _MASTER
        sums, largest = _MASTER * self.count, max(self.zero.reduce_bucket or SCATTERED_BUCKET, self.held.largest)
        update = self._update(min(self.group, largest) // self.shards)
        after = Bytes(sums, each * self.count), Bytes(sums, update), Bytes(sums, self._gather())
        before = Bytes(sums, 0)
        return GradientMemory(before, before, 0 if self.zero.overlap is False else each, after)

    def of_whole(self) -> GradientMemory:
        """Gradients are whole until the backward pass is done, and then copied bucket by bucket."""
        copies = _MASTER * most_copied(self.held, self.shards)
        before = Bytes(self.whole, self.buckets) if self.several else Bytes(0, 0)
        backward = Bytes(self.whole if self.several else 0, self.buckets)
        after = Bytes(self.whole + copies, self.buckets), *self._flat_update(copies, True)
        return GradientMemory(before, backward, self._made(), after)

    def in_buckets(self) -> GradientMemory:
        """A full bucket is reduced: concatenated again, and once more in the type of the sum."""
        is_narrow = self.itemsize < _MASTER
        copies = self.own if is_narrow else _MASTER * most_copied(self.held, self.shards)
        bucket = max(min(self.zero.reduce_bucket or BUCKET, self.count), self.held.largest)
        in_sum = _MASTER if self.zero.reduce_dtype == "fp32" else 0
        reduced = bucket * (self.itemsize + in_sum) if is_narrow else 0
        update, gather = self._flat_update(copies, not is_narrow)
        if is_narrow:  # the range of gradients stays, and is cleared
            gather = gather._replace(gradients=copies)
        after = Bytes(copies, self.buckets + reduced), update, gather
        return GradientMemory(Bytes(copies if self.several else 0, 0), Bytes(copies, self.buckets), 0, after)

    def of_split_weights(self) -> GradientMemory:
        """ZeRO-3: buckets and weights are gathered and released all the time.

        `buckets` includes all weights that are whole or being gathered.  In addition there is the buffer that they are
        gathered in, until each is copied out; and a second such buffer before, if collectives copy.
        """
        gathered = self.itemsize * min(self.zero.prefetch_bucket + self.held.largest, self.count)
        always = Bytes(self.own, self.buckets)
        update, _ = self._flat_update(self.own, True)
        return GradientMemory(always, always, 0, (update,), gathered)

    def _made(self) -> int:
        return 0 if self.several else self.itemsize  # later ones are added to the first

    def _flat_update(self, copies: int, is_put_together: bool) -> tuple[Bytes, Bytes]:
        """The update of a flat range, for which gradients may have to be concatenated; and the gathering of weights."""
        at_once = self.group // self.shards
        flat = _MASTER * at_once if is_put_together else 0
        return Bytes(copies, flat + self._update(at_once)), Bytes(0, self._gather())

    def _update(self, at_once: int) -> int:
        """Bytes of temporaries."""
        return _MASTER * self.config.optimizer.in_update(at_once, self.held.largest, self.is_fused)

    def _gather(self) -> int:
        """Bytes of copies of updated weights, where a collective makes some: of the whole."""
        gathered = self.itemsize * min(self.zero.gather_bucket, self.count)
        return self.copies * gathered


def most_copied(held: Parameters, shards: int) -> int:
    """Elements of all parameters that a rank updates in whole or part, on the rank that has most of them.

    Parameters with and without weight decay are split separately.
    """
    return held.table + _most_reached(held.layers, shards)


def _most_reached(sizes: Sequence[int], shards: int) -> int:
    """The most elements of parameters, laid end to end, that overlap one of `shards` equal ranges."""
    ends = list(accumulate(sizes))
    if not ends:
        return 0
    each, most, first, last = -(-ends[-1] // shards), 0, 0, 0
    for shard in range(shards):
        while ends[first] <= shard * each and first < len(ends) - 1:
            first += 1
        last = max(last, first)
        while ends[last] < (shard + 1) * each and last < len(ends) - 1:
            last += 1
        most = max(most, ends[last] - ends[first] + sizes[first])
    return most
