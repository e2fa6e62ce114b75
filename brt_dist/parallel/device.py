"""The one place that knows on which kind of device we run.  Everything else asks here.

CPU runs use gloo and DeepSpeed's CPU accelerator, GPU runs NCCL and the CUDA one; the code above is the same.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from brt_dist.errors import PlatformError
from brt_dist.parallel.deepspeed_internals import skip_compiled_kernels


@dataclass(frozen=True)
class Device:
    """Device of this rank: `kind` is "cpu" or "cuda", `index` the local rank's number on its node."""

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
        """As the driver gives it; "cpu" for a CPU."""
        return torch.cuda.get_device_name(self.index) if self.kind == "cuda" else "cpu"

    def synchronize(self) -> None:
        """Wait for queued work, so that a clock read afterwards means something."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.index)

    def mark(self) -> Any:
        """This moment in the work of this rank; costs nothing and waits for nothing."""
        if self.kind == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Between two marks; after `synchronize`."""
        return begin.elapsed_time(end) / 1000 if self.kind == "cuda" else end - begin

    def peak_memory_bytes(self) -> int:
        """Peak memory of this process on the device: allocated by torch on a GPU, resident on a CPU."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.index)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def choose(kind: str, local_rank: int) -> Device:
    """The device of the rank with number `local_rank` on its node; prepares torch and DeepSpeed for it.

    Must be called before DeepSpeed is imported: it picks its accelerator at import.

    Raises:
        PlatformError: `kind` is "cuda" and there is no such GPU.
    """
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise PlatformError(
                f"rank {local_rank} of this node has no GPU: torch sees {torch.cuda.device_count()}. "
                "Start at most one rank per GPU, or set run.device=cpu."
            )
        torch.cuda.set_device(local_rank)
        # one queue: the reduction of a gradient starts before the product that it overlaps with
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    os.environ["DS_ACCELERATOR"] = kind
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed insists on it
    if kind == "cpu":
        skip_compiled_kernels()
    return Device(kind, local_rank)
