"""A rank of a real layout that measures its memory: what torch allocates, and what its process has in memory."""

import ctypes
import gc
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from brt_dist.config.schema import Config

_PROCESS = Path("/proc/self")
# of mallopt: blocks of 64 KB and more are mapped, filled when they are allocated, and unmapped when they are freed
_AS_ON_A_GPU = {"M_MMAP_MAX": (-4, 65536), "M_MMAP_THRESHOLD": (-3, 65536), "M_PERTURB": (-6, 1)}


def tensors_at_peak(rank: int, store: str, given: Config) -> int:
    """The most bytes of torch's allocator that are in use during the second step, when the optimizer has its state."""
    began = 0

    def begin() -> None:
        nonlocal began
        began = time.time_ns()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _two_steps(rank, store, given, begin)
    return most_in_use(_allocations(profiled.profiler.kineto_results.experimental_event_tree()), began)


def most_in_use(events: Iterable[tuple[int, int, int]], began: int) -> int:
    """The most bytes in use from a time on.

    A thread of gloo may be the last to let go of what it sent, and the profiler does not see what that thread frees.
    Such memory counts until another tensor lies where it was.

    Args:
        events: nanoseconds, address, and bytes allocated, or less than 0 for those freed.
        began: nanoseconds; what happened earlier is in use, but no peak.
    """
    starts: list[int] = []  # sorted addresses of what is in use
    sizes: dict[int, int] = {}
    in_use = most = 0
    for when, address, size in sorted(events, key=lambda event: event[0]):
        end = address + max(size, 1)  # what is freed begins here
        first = bisect_left(starts, address)
        if size > 0 and first and starts[first - 1] + sizes[starts[first - 1]] > address:
            first -= 1
        last = bisect_left(starts, end)
        in_use -= sum(sizes.pop(start) for start in starts[first:last])
        starts[first:last] = [address] if size > 0 else []
        if size > 0:
            sizes[address] = size
            in_use += size
        most = max(most, in_use if when >= began else 0)
    return most


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Those of all threads, below all operations."""
    left = list(events)
    while left:
        event = left.pop()
        left += event.children
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size


def process_at_peak(rank: int, store: str, given: Config) -> int:
    """The most bytes of the process in memory during the second step.

    As on a GPU, the memory of a tensor is taken when it is allocated, and given back when it is freed.  A run on CPUs
    takes each page when it is written first, and keeps what is freed, for speed, with the holes between tensors.
    """
    # "5" makes the peak what is resident now
    _two_steps(rank, store, given, lambda: (_PROCESS / "clear_refs").write_text("5"), as_on_a_gpu=True)
    found = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _two_steps(rank: int, store: str, given: Config, begin: Callable[[], object], as_on_a_gpu: bool = False) -> None:
    """Train two steps; `begin` is called before the second.

    Args:
        as_on_a_gpu: take and give back memory as there.
    """
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, initialize
    from tests.scale.world import step_input

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    for option in _AS_ON_A_GPU.values() if as_on_a_gpu else ():
        ctypes.CDLL(None).mallopt(*option)
    initialize(layout, device, 200.0, dist.FileStore(store, layout.world_size))
    engine = build_engine(given, layout, device)
    engine.train_step(step_input(given, layout, 1), 1e-3)
    gc.collect()
    begin()
    engine.train_step(step_input(given, layout, 2), 1e-3)
    dist.barrier()
