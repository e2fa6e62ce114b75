"""A rank of a real layout that measures its memory: what torch allocates, and what its process has in memory."""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch.distributed as dist
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
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    events.sort(key=lambda one: one.start_ns())
    in_use = accumulate(one.nbytes() for one in events)
    return max(bytes_ for bytes_, event in zip(in_use, events, strict=True) if event.start_ns() >= began)


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
