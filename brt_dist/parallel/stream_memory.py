"""Memory of the streams, between steps, for the layers of one stage.

Two slots: forward reads *committed* and writes *pending*; pending becomes committed when the optimizer step is done.
So running a forward pass twice (recompute), skipping a step or dying in the middle of one leaves the memory unchanged.
Memory belongs to the stage that owns the layer and to the data parallel row that owns the streams; it never travels.

Where the slots are kept is a :class:`~brt_dist.parallel.memory_place.MemoryPlace`: on the device, or in host memory.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from brt_dist.model.memory import Memory
from brt_dist.parallel.memory_place import Key, MemoryPlace, OnDevice


class StreamMemory:
    """Committed and pending memory by (layer, micro-batch).

    Args:
        blank: memory of a micro-batch before its first document, by global index of the layer; on the device.
        micro_batches: micro-batches per step; micro-batch i always holds the same streams.
        place: keeps the slots; several memories may share it.
    """

    def __init__(self, blank: Mapping[int, Memory], micro_batches: int, place: MemoryPlace | None = None) -> None:
        self._place = place or OnDevice()
        self._layers = tuple(blank)
        self._micro_batches = micro_batches
        self._blank = dict(blank)
        self._pending: dict[Key, Memory] = {}
        self._committed = {(layer, i): memory for layer, memory in blank.items() for i in range(micro_batches)}

    def prefetch(self, micro_batch: int) -> None:
        """Start to fetch the committed memory of a micro-batch, if any, to the device: it is read next."""
        for layer in self._layers if micro_batch < self._micro_batches else ():
            self._place.prefetch((layer, micro_batch), self._committed[layer, micro_batch])

    def read(self, layer: int, micro_batch: int) -> Memory:
        """Memory of the streams of `micro_batch` as the last finished step left it, on the device."""
        key = layer, micro_batch
        return self._place.fetch(key, self._committed[key])

    def write(self, layer: int, micro_batch: int, memory: Memory) -> None:
        """Memory after this step's segment; visible to :meth:`read` after :meth:`commit`."""
        key = layer, micro_batch
        self._pending[key] = self._place.keep(key, memory, self._pending.get(key))

    def commit(self) -> None:
        """Make the pending memory the committed one, after the update."""
        missing = self._committed.keys() - self._pending.keys()
        if missing:
            raise RuntimeError(f"commit of a step in which no forward ran for (layer, micro-batch) {sorted(missing)}")
        before, self._committed, self._pending = self._written(self._committed), self._pending, {}
        self._place.free(before)
        self._blank = {}

    def discard(self) -> None:
        """Drop the pending memory, if the update was skipped."""
        before, self._pending = self._pending, {}
        self._place.free(before)

    def tensors(self) -> Iterator[tuple[int, int, str, torch.Tensor]]:
        """Committed memory as (layer, micro-batch, field, tensor), wherever it is kept."""
        self._place.finish()
        for (layer, micro_batch), memory in self._committed.items():
            for field, value in memory.items():
                yield layer, micro_batch, field, value

    def replace(self, tensors: Iterable[tuple[int, int, str, torch.Tensor]]) -> None:
        """Replace the committed memory: what :meth:`tensors` returned, with other values in the same shapes.

        The types and devices stay those of the model.  Nothing is written in place: blank memory may be one tensor
        for all micro-batches.
        """
        self.discard()
        self._place.finish()
        changed: dict[Key, Memory] = {}
        for layer, micro_batch, field, value in tensors:
            key = layer, micro_batch
            like = self._committed[key][field]
            changed.setdefault(key, dict(self._committed[key]))[field] = value.to(like, copy=True).view(like.shape)
        before = self._written({key: self._committed[key] for key in changed})
        self._committed |= {key: self._place.keep(key, memory, None) for key, memory in changed.items()}
        self._place.free(before)

    def _written(self, slot: Mapping[Key, Memory]) -> dict[Key, Memory]:
        """The part of a slot that is not the blank memory shared by all micro-batches."""
        return {key: memory for key, memory in slot.items() if memory is not self._blank.get(key[0])}


class ForwardMemory(StreamMemory):
    """One slot, for evaluation: without a backward pass, forward passes run once and no memory is discarded.

    A write replaces what was read.  Meanwhile training has committed but no pending memory, so both together need two
    slots, as a training step does.
    """

    def write(self, layer: int, micro_batch: int, memory: Memory) -> None:
        key = layer, micro_batch
        before = self._written({key: self._committed[key]}).get(key)
        self._committed[key] = self._place.keep(key, memory, before)

    def commit(self) -> None:
        """Nothing is pending."""

    def close(self) -> None:
        """Release its buffers to the other memories of the place."""
        before, self._committed = self._written(self._committed), {}
        self._place.free(before)
