"""How long this rank waits for the others in a step, and so how long it works itself.

All ranks of a step end together, however slow one of them is: the others wait for it in collectives.  What tells a
slow rank is the time that it does *not* wait.  Measured around the functions of torch.distributed, in the steps that
are looked at and in no other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from brt_dist.parallel import deepspeed_internals, megatron_internals
from brt_dist.parallel.device import Device

_COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "reduce",
    "broadcast",
    "barrier",
    "send",
    "recv",
)


class Work:
    """The time of one step: `seconds` of work are known when it is over."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._waits: list[tuple[Any, Any]] = []
        self._begin, self._end = device.mark(), device.mark()

    @property
    def seconds(self) -> float:
        """From begin to end, without the waiting."""
        self._device.synchronize()
        between = self._device.seconds_between
        return between(self._begin, self._end) - sum(between(begin, end) for begin, end in self._waits)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with the time in it taken as waiting."""

        def call(*arguments: Any, **options: Any) -> Any:
            begin = self._device.mark()
            result = function(*arguments, **options)
            self._waits.append((begin, self._device.mark()))
            return _TimedHandle(result, self) if hasattr(result, "wait") else result

        return call

    def done(self) -> None:
        self._end = self._device.mark()


class _TimedHandle:
    """A handle of a collective that runs on; the wait for it counts."""

    def __init__(self, handle: Any, work: Work) -> None:
        self._handle = handle
        self.wait = work.timed(handle.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextmanager
def work_of_step(device: Device) -> Iterator[Work]:
    """Everything in the block is timed.  Not to be nested."""
    work = Work(device)
    before = [(owner, name, getattr(owner, name)) for owner, name in _places()]
    try:
        for owner, name, function in before:
            setattr(owner, name, work.timed(function))
        yield work
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
        work.done()


def _places() -> list[tuple[Any, str]]:
    """Where the functions are looked up; DeepSpeed and Megatron have copies of two."""
    ours = [(dist, name) for name in _COLLECTIVES]
    return [*ours, *deepspeed_internals.collectives(), *megatron_internals.collectives()]
