"""An order of documents that keeps to few shards at a time: shards in random order, documents within groups of shards.

A remote dataset that does not fit in the cache is then read shard after shard.  In the order of `EpochOrder`, every
document may be in another shard.
"""

from dataclasses import dataclass

import numpy as np

from brt_dist.data.epoch_order import EpochOrder, Int64Array

_GROUP_SEED = 0x2545F4914F6CDD1D  # groups of equal size have different orders


class ShardOrder:
    """Maps ordinals to documents.  Ordinal g = epoch * K + position; each epoch has every document once.

    An epoch has its own order of the shards, cut into groups; the documents of a group are permuted together, and the
    groups follow one another.

    Args:
        shards: (S,) number of documents of each shard, in the order of the dataset.
        seed: any 64-bit integer.
        together: how many shards make a group.
    """

    def __init__(self, shards: Int64Array, seed: int, together: int) -> None:
        self.documents = int(shards.sum())
        self._shards, self._seed, self._together = shards, seed, together
        self._firsts = np.cumsum(shards) - shards  # first document of each shard
        self._order = EpochOrder(shards.size, seed)
        self._epochs: dict[int, _Epoch] = {}

    def __call__(self, ordinals: Int64Array) -> Int64Array:
        """Documents (n,) of the ordinals (n,), each in [0, K)."""
        epochs, positions = np.divmod(np.asarray(ordinals, dtype=np.int64), self.documents)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            found[rows] = self._in_epoch(epoch, positions[rows])
        return found

    def _in_epoch(self, epoch: int, positions: Int64Array) -> Int64Array:
        known = self._epoch(epoch)
        groups = known.group_ends.searchsorted(positions, side="right")
        mixed = np.empty_like(positions)
        for group in np.unique(groups).tolist():
            rows = np.flatnonzero(groups == group)
            end = int(known.group_ends[group])
            begin = int(known.group_ends[group - 1]) if group else 0
            permuted = EpochOrder(end - begin, self._seed + (group + 1) * _GROUP_SEED)
            mixed[rows] = begin + permuted(epoch * (end - begin) + positions[rows] - begin)
        places = known.shard_ends.searchsorted(mixed, side="right")
        inside = mixed - (known.shard_ends[places] - self._shards[known.shards[places]])
        return self._firsts[known.shards[places]] + inside

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._epochs:
            shards = self._order(epoch * self._shards.size + np.arange(self._shards.size))
            ends = np.cumsum(self._shards[shards])
            last = np.minimum(np.arange(self._together, shards.size + self._together, self._together), shards.size) - 1
            # streams are in one epoch or on the edge of two
            self._epochs = {**dict([*self._epochs.items()][-1:]), epoch: _Epoch(shards, ends, ends[last])}
        return self._epochs[epoch]


@dataclass(frozen=True)
class _Epoch:
    """The shards (S,) of an epoch in their order, the documents (S,) up to the end of each, and of each group (G,)."""

    shards: Int64Array
    shard_ends: Int64Array
    group_ends: Int64Array
