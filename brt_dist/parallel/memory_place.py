"""Where the memory of streams is kept while its micro-batch is not in flight: on the device, or in host memory.

In host memory it takes device memory for only a few micro-batches: the next one's is fetched while the one before
computes, and what a forward pass wrote goes back while the next one computes.  Values are copied, so they stay the same
bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

from brt_dist.model.memory import Memory
from brt_dist.parallel.device import Transfers

Key: TypeAlias = tuple[int, int]
"""(layer, micro-batch)"""


class MemoryPlace(ABC):
    """Keeps memory, by (layer, micro-batch)."""

    @abstractmethod
    def keep(self, key: Key, memory: Memory, before: Memory | None) -> Memory:
        """Keep what a forward wrote; returns how it is kept.

        Args:
            before: what was kept and is replaced; None: nothing.
        """

    @abstractmethod
    def prefetch(self, key: Key, kept: Memory) -> None:
        """Start to fetch kept memory to the device."""

    @abstractmethod
    def fetch(self, key: Key, kept: Memory) -> Memory:
        """Kept memory, on the device."""

    @abstractmethod
    def free(self, kept: Mapping[Key, Memory]) -> None:
        """Release memory that is no longer needed."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until the host may read what is kept."""


class OnDevice(MemoryPlace):
    """Keeps the tensors themselves."""

    def keep(self, key: Key, memory: Memory, before: Memory | None) -> Memory:
        return memory

    def prefetch(self, key: Key, kept: Memory) -> None:
        pass

    def fetch(self, key: Key, kept: Memory) -> Memory:
        return kept

    def free(self, kept: Mapping[Key, Memory]) -> None:
        pass

    def finish(self) -> None:
        pass


class OnHost(MemoryPlace):
    """Keeps copies in host memory, in buffers that are reused: two for each key, once both slots were written.

    Args:
        transfers: of the device.
    """

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._free: dict[Key, Memory] = {}
        self._coming: dict[Key, tuple[Memory, Memory, Any]] = {}  # what was fetched, on the device, once it is there

    def keep(self, key: Key, memory: Memory, before: Memory | None) -> Memory:
        buffers = before or self._free.pop(key, None)
        if buffers is None:
            buffers = {name: self._transfers.host_buffer(value) for name, value in memory.items()}
        self._transfers.to_host(memory, buffers)
        return buffers

    def prefetch(self, key: Key, kept: Memory) -> None:
        self._coming[key] = (kept, *self._transfers.to_device(kept))

    def fetch(self, key: Key, kept: Memory) -> Memory:
        source, memory, arrival = self._coming.pop(key, (None, {}, None))
        if source is not kept:
            memory, arrival = self._transfers.to_device(kept)
        self._transfers.await_arrival(arrival)
        return memory

    def free(self, kept: Mapping[Key, Memory]) -> None:
        self._free |= kept
        self._coming.clear()

    def finish(self) -> None:
        self._transfers.finish()
