"""The only module that distinguishes kinds of devices.

CPU runs use gloo and DeepSpeed's CPU accelerator, GPU runs NCCL and the CUDA one; all other code is the same.
"""

import ctypes
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brt_dist.errors import PlatformError
from brt_dist.parallel.deepspeed_internals import skip_compiled_kernels

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt


@dataclass(frozen=True)
class Device:
    """The device of a rank.

    Attributes:
        kind: "cpu" or "cuda".
        index: local rank on its node.
    """

    kind: str
    index: int

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device("cpu")

    @property
    def backend(self) -> str:
        """Backend of torch.distributed."""
        return "nccl" if self.kind == "cuda" else "gloo"

    @property
    def name(self) -> str:
        """Name reported by the driver; "cpu" for a CPU."""
        return torch.cuda.get_device_name(self.index) if self.kind == "cuda" else "cpu"

    def synchronize(self) -> None:
        """Wait for queued work, so that a clock read afterwards is meaningful."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.index)

    def mark(self) -> Any:
        """Record a point in time in this rank's work, without waiting for queued work."""
        if self.kind == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def queue(self) -> int:
        """The number of the current work queue; 0 on a CPU, which has none."""
        return torch.cuda.current_stream(self.index).cuda_stream if self.kind == "cuda" else 0

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks; call `synchronize` first."""
        return begin.elapsed_time(end) / 1000 if self.kind == "cuda" else end - begin

    def memory_bytes(self) -> int:
        """Memory of the device; for a CPU, all of the machine's."""
        if self.kind == "cuda":
            return int(torch.cuda.get_device_properties(self.index).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def peak_memory_bytes(self) -> int:
        """Peak memory of this process on the device: allocated by torch on a GPU, resident on a CPU."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.index)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def transfers(self) -> "Transfers":
        """Copies to and from host memory, in a separate queue."""
        return Transfers(self)


class Transfers:
    """Copies between device and host, in order, overlapping the work of the device.  On a CPU they happen at once.

    A copy begins when the work that was queued before it is done.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device.torch) if device.kind == "cuda" else None

    def host_buffer(self, like: Tensor) -> Tensor:
        """Uninitialised host memory of the shape and type of `like`, page-locked where there is a GPU."""
        if self._stream is None:
            return torch.empty_like(like)
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def to_host(self, sources: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Copy each tensor to the buffer of the same name."""
        with self._beside():
            for name, source in sources.items():
                buffers[name].copy_(source, non_blocking=True)
                self._keep(source)

    def to_device(self, sources: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Copies on the device, and what to pass to :meth:`await_arrival` before using them."""
        if self._stream is None:
            return {name: source.clone() for name, source in sources.items()}, None
        copies = {name: torch.empty_like(source, device=self._device.torch) for name, source in sources.items()}
        with self._beside():
            for name, copy in copies.items():
                copy.copy_(sources[name], non_blocking=True)
                self._keep(copy)
            return copies, self._stream.record_event()

    def await_arrival(self, arrival: Any) -> None:
        """Make work that is queued on the device from now on wait for a copy."""
        if arrival is not None:
            torch.cuda.current_stream(self._device.torch).wait_event(arrival)

    def finish(self) -> None:
        """Wait until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def _keep(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor from being reused before the copies queued so far are done."""
        if self._stream is not None and tensor.is_cuda:
            tensor.record_stream(self._stream)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device.torch))
        with torch.cuda.stream(self._stream):
            yield


def choose(kind: str, local_rank: int) -> Device:
    """Choose the device of a rank, and prepare torch and DeepSpeed for it.

    Call it before DeepSpeed is imported, which picks its accelerator at import.

    Args:
        kind: "cpu" or "cuda"; "auto" only for a process alone, because several must agree (see `device_choice`).
        local_rank: number of the rank on its node.

    Raises:
        PlatformError: `kind` is "cuda" and there is no GPU for this rank.
    """
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        # One queue: the reduction of a gradient starts before the product that it overlaps with.  CUDA reads it once.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        if local_rank >= torch.cuda.device_count():
            raise PlatformError(
                f"no GPU for local rank {local_rank}: this node has {torch.cuda.device_count()} visible GPUs. "
                "Start at most one rank per GPU, or set run.device=cpu."
            )
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.allow_tf32 = False  # no TF32; for matrix products that is torch's default
    os.environ["DS_ACCELERATOR"] = kind
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed requires it
    if kind == "cpu":
        skip_compiled_kernels()
        keep_freed_memory()
    return Device(kind, local_rank)


def keep_freed_memory() -> None:
    """Have the C library reuse freed memory, however large the pieces, instead of returning it to the system.

    Every step allocates the same large tensors again.  By default glibc requests each from the system and returns it,
    and the system clears every page: a tenth of a step's time.  Other C libraries are left unchanged.
    """
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(_TRIM_THRESHOLD, 2**31 - 1)
        allocator(_MMAP_MAX, 0)
