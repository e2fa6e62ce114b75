"""Memory of the streams, between steps, for the layers of one stage.

Two slots: forward reads *committed* and writes *pending*; pending becomes committed when the optimizer step is done.
So running a forward twice (recompute), skipping a step or dying in the middle of one leaves the memory as it was.
Memory belongs to the stage that owns the layer and to the data parallel row that owns the streams; it never travels.
"""

from collections.abc import Mapping
from typing import Any

import torch

from brt_dist.errors import CheckpointError
from brt_dist.model.memory import LayerMemory


class StreamMemory:
    """Committed and pending memory by (layer, micro-batch).

    Args:
        blank: memory of a micro-batch before its first document, by global index of the layer.
        micro_batches: micro-batches per step; micro-batch i always holds the same streams.
    """

    def __init__(self, blank: Mapping[int, LayerMemory], micro_batches: int) -> None:
        self._blank = dict(blank)
        self._micro_batches = micro_batches
        self._pending: dict[tuple[int, int], LayerMemory] = {}
        self._committed = {(layer, i): memory for layer, memory in blank.items() for i in range(micro_batches)}

    def read(self, layer: int, micro_batch: int) -> LayerMemory:
        """Memory of the streams of `micro_batch` as the last finished step left it."""
        return self._committed[layer, micro_batch]

    def write(self, layer: int, micro_batch: int, memory: LayerMemory) -> None:
        """Memory after this step's segment; visible to :meth:`read` after :meth:`commit`."""
        self._pending[layer, micro_batch] = memory

    def commit(self) -> None:
        """The step is done: what was pending holds from now on."""
        missing = self._committed.keys() - self._pending.keys()
        if missing:
            raise RuntimeError(f"commit of a step in which no forward ran for (layer, micro-batch) {sorted(missing)}")
        self._committed, self._pending = self._pending, {}

    def discard(self) -> None:
        """Forget a step that was begun and is not taken."""
        self._pending = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Committed memory by name `layers.LAYER.FIELD`, rows in the order of the layout's `local_streams`."""
        named = {}
        for layer, blank in self._blank.items():
            for field, value in blank._asdict().items():
                if value is not None:
                    rows = [getattr(self._committed[layer, i], field) for i in range(self._micro_batches)]
                    named[f"layers.{layer}.{field}"] = torch.cat(rows)
        return named

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the committed memory; the inverse of :meth:`tensors`.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        committed = {}
        for layer, blank in self._blank.items():
            fields: dict[str, Any] = {}
            for field, value in blank._asdict().items():
                if value is None:
                    fields[field] = [None] * self._micro_batches
                    continue
                name = f"layers.{layer}.{field}"
                shape = (value.shape[0] * self._micro_batches, *value.shape[1:])
                found = tensors.get(name)
                if found is None or tuple(found.shape) != shape:
                    raise CheckpointError(
                        f"memory tensor {name} is {'missing' if found is None else f'of shape {tuple(found.shape)}'}, "
                        f"expected shape {shape}"
                    )
                fields[field] = [part.to(value) for part in found.to(value).split(value.shape[0])]
            for i in range(self._micro_batches):
                committed[layer, i] = blank._replace(**{field: rows[i] for field, rows in fields.items()})
        self._committed, self._pending = committed, {}
