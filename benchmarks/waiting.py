"""Where a rank waits: every call that moves data between processes, and what its time was spent on."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_into_tensor",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
TO, FROM = ("send", "isend"), ("recv", "irecv")

Channel: TypeAlias = tuple[str, ...]
"""What two ranks must agree on for their calls to be the same: a process group, or a sender and a receiver."""


@dataclass(frozen=True)
class Call:
    """One call of a rank, in seconds of a clock that all ranks share.

    Attributes:
        channel: calls of one channel come in the same order on all its ranks.
        begin: when the rank was ready for it.
        blocked: from when to when the rank could do nothing else.
    """

    channel: Channel
    begin: float
    blocked: tuple[float, float]


@dataclass(frozen=True)
class Share:
    """Seconds of a rank: `waiting` for another one to come to the call, and `moving` data when all were there."""

    waiting: float
    moving: float


def shares(ranks: Sequence[Iterable[Call]]) -> list[Share]:
    """What each rank's blocked time went to.

    Args:
        ranks: the calls of each rank, in order.
    """
    ready: dict[tuple[Channel, int], float] = {}  # when the last rank came to a call
    numbered = [list(_numbered(calls)) for calls in ranks]
    for calls in numbered:
        for key, call in calls:
            ready[key] = max(ready.get(key, call.begin), call.begin)
    found = []
    for calls in numbered:
        waiting = moving = 0.0
        for key, call in calls:
            begin, end = call.blocked
            arrived = min(max(ready[key], begin), end)
            waiting += arrived - begin
            moving += end - arrived
        found.append(Share(waiting, moving))
    return found


def _numbered(calls: Iterable[Call]) -> Iterator[tuple[tuple[Channel, int], Call]]:
    counts: dict[Channel, int] = defaultdict(int)
    for call in calls:
        yield (call.channel, counts[call.channel]), call
        counts[call.channel] += 1


@contextmanager
def watched(calls: list[Call]) -> Iterator[None]:
    """Add every call of this rank in the block to `calls`, in order; those of groups of one rank are left out."""
    import torch.distributed as dist

    from brt_dist.parallel import deepspeed_internals, megatron_internals

    names = [name for name in (*COLLECTIVES, *TO, *FROM) if hasattr(dist, name)]
    originals = [(dist, name, getattr(dist, name)) for name in names]
    # copies that libraries took before; DeepSpeed has none before it has an engine
    for owner, name in (*deepspeed_internals.collectives(), *megatron_internals.collectives()):
        if owner is not None:
            originals.append((owner, name, getattr(owner, name)))
    wrapped = {id(original): _Watch(original.__name__, original, calls) for _, _, original in originals}
    for owner, name, original in originals:
        setattr(owner, name, wrapped[id(original)])
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


class _Watch:
    """A function of `torch.distributed` that notes its calls."""

    inside = False  # one function may be made of others

    def __init__(self, name: str, function: Callable[..., Any], calls: list[Call]) -> None:
        self._name, self._function, self._calls = name, function, calls

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        channel = None if _Watch.inside else self._channel(arguments, named)
        if channel is None:
            return self._function(*arguments, **named)
        _Watch.inside = True
        begin = time.perf_counter()
        try:
            result = self._function(*arguments, **named)
        finally:
            _Watch.inside = False
        place = len(self._calls)
        self._calls.append(Call(channel, begin, (begin, time.perf_counter())))
        return _Work(result, self._calls, place) if hasattr(result, "wait") else result

    def _channel(self, arguments: Sequence[Any], named: dict[str, Any]) -> Channel | None:
        import torch.distributed as dist

        groups = [one for one in (*arguments, *named.values()) if isinstance(one, dist.ProcessGroup)]
        group = groups[0] if groups else dist.group.WORLD
        if group is None or group.size() == 1:
            return None
        if self._name not in (*TO, *FROM):
            return ("group", str(group.group_name))
        other = arguments[1] if len(arguments) > 1 else named["dst" if self._name in TO else "src"]
        ends = (dist.get_rank(), other) if self._name in TO else (other, dist.get_rank())
        return ("from and to", *map(str, ends))


class _Work:
    """A call under way; the rank is blocked while it waits for it."""

    def __init__(self, work: Any, calls: list[Call], place: int) -> None:
        self._work, self._calls, self._place = work, calls, place

    def wait(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._work.wait(*arguments)
        call = self._calls[self._place]
        self._calls[self._place] = Call(call.channel, call.begin, (begin, time.perf_counter()))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
