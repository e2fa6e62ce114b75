"""Memory of the streams, between steps, for the layers of one stage.

Two slots: forward reads *committed* and writes *pending*; pending becomes committed when the optimizer step is done.
So running a forward twice (recompute), skipping a step or dying in the middle of one leaves the memory as it was.
Memory belongs to the stage that owns the layer and to the data parallel row that owns the streams; it never travels.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from brt_dist.model.memory import Memory


class StreamMemory:
    """Committed and pending memory by (layer, micro-batch).

    Args:
        blank: memory of a micro-batch before its first document, by global index of the layer.
        micro_batches: micro-batches per step; micro-batch i always holds the same streams.
    """

    def __init__(self, blank: Mapping[int, Memory], micro_batches: int) -> None:
        self._pending: dict[tuple[int, int], Memory] = {}
        self._committed = {(layer, i): memory for layer, memory in blank.items() for i in range(micro_batches)}

    def read(self, layer: int, micro_batch: int) -> Memory:
        """Memory of the streams of `micro_batch` as the last finished step left it."""
        return self._committed[layer, micro_batch]

    def write(self, layer: int, micro_batch: int, memory: Memory) -> None:
        """Memory after this step's segment; visible to :meth:`read` after :meth:`commit`."""
        self._pending[layer, micro_batch] = memory

    def commit(self) -> None:
        """Make the pending memory the committed one, after the update."""
        missing = self._committed.keys() - self._pending.keys()
        if missing:
            raise RuntimeError(f"commit of a step in which no forward ran for (layer, micro-batch) {sorted(missing)}")
        self._committed, self._pending = self._pending, {}

    def discard(self) -> None:
        """Drop the pending memory, if the update was skipped."""
        self._pending = {}

    def tensors(self) -> Iterator[tuple[int, int, str, torch.Tensor]]:
        """Committed memory as (layer, micro-batch, field, tensor)."""
        for (layer, micro_batch), memory in self._committed.items():
            for field, value in memory.items():
                yield layer, micro_batch, field, value

    def replace(self, tensors: Iterable[tuple[int, int, str, torch.Tensor]]) -> None:
        """Replace the committed memory; what :meth:`tensors` gave, with other values in the same shapes.

        The types and devices stay those of the model.  Nothing is written in place: blank memory may be one tensor
        for all micro-batches.
        """
        committed = dict(self._committed)
        for layer, micro_batch, field, value in tensors:
            memory = committed[layer, micro_batch]
            like = memory[field]
            committed[layer, micro_batch] = {**memory, field: value.to(like, copy=True).view(like.shape)}
        self._committed, self._pending = committed, {}
