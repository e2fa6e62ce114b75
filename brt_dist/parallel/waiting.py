"""Measures where the time of a step goes on this rank: forward, backward, update, and waiting for other ranks.

All ranks finish a step together, however slow one of them is, because the others wait for it in collectives.  A slow
rank is the one that does *not* wait.  The functions of torch.distributed are timed, in the measured steps only.  Marks
are set in the queue of the device and read when the step is done, so nothing waits for them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

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
_SMALL = 64  # elements; agreements are not larger
WAITING = ("tensor", "pipeline", "reduce", "gather", "agreement")
"""the parts of a step in which a rank waits for others"""


class _Span(NamedTuple):
    """An interval of the step, and the part of the step that it belongs to."""

    part: str
    within: str
    begin: Any
    end: Any


class StepTimer:
    """Times the parts of one step.  Time within a nested part counts only there.

    Args:
        device: of this rank.
        tensor_ranks: those of its tensor parallel group.
    """

    def __init__(self, device: Device, tensor_ranks: Sequence[int] = ()) -> None:
        self._device, self._tensor_ranks = device, list(tensor_ranks)
        self._queue = device.queue()
        self._spans: list[_Span] = []
        self._part = "backward"  # the current one: what belongs to no other part
        self._begin = self._end = device.mark()

    def done(self) -> None:
        """The step ends."""
        self._end = self._device.mark()

    @property
    def seconds(self) -> float:
        """Duration of the step without waiting for other ranks.  Waits until the step is done."""
        self._device.synchronize()
        return sum(took for part, took in self.parts().items() if part not in WAITING)

    def parts(self) -> dict[str, float]:
        """Seconds of each part; their sum is the step.  The device must be done with it: `Device.synchronize`.

        `tensor`, `reduce` and `gather` (over data parallel ranks), and `pipeline` (transfers between stages) are
        communication that nothing hides; `agreement` are small sums.  In all of these a rank also waits for others.
        """
        between = self._device.seconds_between
        found: dict[str, float] = defaultdict(float, backward=between(self._begin, self._end))
        for span in self._spans:
            took = between(span.begin, span.end)
            found[span.part] += took
            found[span.within] -= took
        return dict(found)

    def timed(self, function: Callable[..., Any], part: str | None = None) -> Callable[..., Any]:
        """Wrap `function` so that its time counts as a part of the step.

        Args:
            function: to wrap.
            part: that it is; None: it communicates, and its arguments say which part that is.
        """
        name = getattr(function, "__name__", "")

        def call(*arguments: Any, **options: Any) -> Any:
            is_part = part or self._communication(name, [*arguments, *options.values()])
            if is_part is None or self._device.queue() != self._queue:  # in another queue, overlapping the step
                return function(*arguments, **options)
            within, self._part = self._part, is_part
            begin = self._device.mark()
            try:
                result = function(*arguments, **options)
            finally:
                self._part = within
            self._spans.append(_Span(is_part, within, begin, self._device.mark()))
            return _TimedHandle(result, self, is_part) if hasattr(result, "wait") else result

        return call

    def _communication(self, name: str, arguments: Sequence[Any]) -> str | None:
        """The part of the step that a call of torch.distributed belongs to; None: no other rank takes part."""
        if name in ("send", "recv"):
            return "pipeline"
        group = next((one for one in arguments if isinstance(one, dist.ProcessGroup)), None)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        tensor = next((one for one in arguments if isinstance(one, Tensor)), None)
        if len(ranks) == 1:
            return None
        if tensor is None or tensor.numel() <= _SMALL:
            return "agreement"
        if ranks == self._tensor_ranks:
            return "tensor"
        return "gather" if "gather" in name or name == "broadcast" else "reduce"


class _TimedHandle:
    """Handle of an asynchronous collective; waiting on it counts."""

    def __init__(self, handle: Any, timer: StepTimer, part: str) -> None:
        self._handle = handle
        self.wait = timer.timed(handle.wait, part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextmanager
def time_step(
    device: Device, tensor_ranks: Sequence[int] = (), places: Sequence[tuple[Any, str, str]] = ()
) -> Iterator[StepTimer]:
    """Context manager that times the step in its block.

    Args:
        device: of this rank.
        tensor_ranks: those of its tensor parallel group.
        places: further functions to time: owner, name, and the part of the step that they are.
    """
    communication = [(owner, name, None) for owner, name in _communicating()]
    timer = StepTimer(device, tensor_ranks)
    undo = []
    try:
        for owner, name, part in [*communication, *places]:
            undo.append((owner, name, name in vars(owner), getattr(owner, name)))
            setattr(owner, name, timer.timed(getattr(owner, name), part))
        yield timer
    finally:
        for owner, name, is_own, function in reversed(undo):
            if is_own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)
        timer.done()


def _communicating() -> list[tuple[Any, str]]:
    """Where the functions are looked up; DeepSpeed and Megatron have their own references to some."""
    ours = [(dist, name) for name in _COLLECTIVES]
    return [*ours, *deepspeed_internals.collectives(), *megatron_internals.collectives()]
