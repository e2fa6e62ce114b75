"""Measures how long this rank works in a step, as opposed to waiting for other ranks.

All ranks finish a step together, however slow one of them is, because the others wait for it in collectives.  A slow
rank is the one that does *not* wait.  The functions of torch.distributed are timed, in the compared steps only.
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
    "reduce_scatter_single",
    "reduce",
    "broadcast",
    "barrier",
    "send",
    "recv",
)


class WorkTimer:
    """Times the work of one step.

    Args:
        device: of this rank.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._waits: list[tuple[Any, Any]] = []
        self._begin, self._end = device.mark(), device.mark()

    @property
    def seconds(self) -> float:
        """Duration of the step without the waiting, once the step is done."""
        self._device.synchronize()
        between = self._device.seconds_between
        return between(self._begin, self._end) - sum(between(begin, end) for begin, end in self._waits)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `function` so that time spent in it counts as waiting."""

        def call(*arguments: Any, **options: Any) -> Any:
            begin = self._device.mark()
            result = function(*arguments, **options)
            self._waits.append((begin, self._device.mark()))
            return _TimedHandle(result, self) if hasattr(result, "wait") else result

        return call

    def done(self) -> None:
        self._end = self._device.mark()


class _TimedHandle:
    """Handle of an asynchronous collective; waiting on it counts."""

    def __init__(self, handle: Any, work: WorkTimer) -> None:
        self._handle = handle
        self.wait = work.timed(handle.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextmanager
def time_work(device: Device) -> Iterator[WorkTimer]:
    """Context manager that times the work in its block.  Do not nest it."""
    work = WorkTimer(device)
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
    """Where the functions are looked up; DeepSpeed and Megatron have their own references to some."""
    ours = [(dist, name) for name in _COLLECTIVES]
    return [*ours, *deepspeed_internals.collectives(), *megatron_internals.collectives()]
