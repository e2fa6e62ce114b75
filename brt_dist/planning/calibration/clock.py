"""Times what all ranks of a machine do at once, and detects other work on the machine meanwhile."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import agree

_FEWEST, _MOST = 3, 100  # repeats
_SIDE = {"cpu": 768, "cuda": 4096}  # of the probe's matrices
_LOOKS = 3  # matrix products of a sample
# A sample is slow if it takes this many times as long as the shortest; the share of samples that may be slow.
_LONGER, _OFTEN = 1.15, 0.2
_SHARE = 0.9  # share of its CPUs that a rank should get


class Clock:
    """Medians over as many repeats as fit into the given seconds; ranks begin together and repeat equally often.

    Args:
        device: of this rank.
        seconds: for one measurement, about.
    """

    def __init__(self, device: Device, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        self.probe = Probe(device)

    def __call__(self, run: Callable[[], Any]) -> float:
        """Seconds that `run` takes, including the device's work.  Collective."""
        self._once(run)  # memory is allocated, kernels are compiled
        (slowest,) = agree((self._once(run),), self._device)
        repeats = min(max(int(self._seconds / max(slowest, 1e-9)), _FEWEST), _MOST)
        agree((0.0,), self._device)
        found = median(self._once(run) for _ in range(repeats))
        self.probe.look()
        return found

    def _once(self, run: Callable[[], Any]) -> float:
        return _seconds(self._device, run)


class Probe:
    """A probe between measurements: undisturbed, the same product always takes as long, on all CPUs of this rank.

    Args:
        device: of this rank.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._factor = torch.randn(_SIDE[device.kind], _SIDE[device.kind], device=device.torch)
        self.seconds: list[float] = []  # of each sample
        self.shares: list[float] = []  # share of this rank's CPUs that it got; 1 if a device computes
        _seconds(device, self._product)

    def look(self) -> None:
        """Time it now."""
        cpus = torch.get_num_threads() if self._device.kind == "cpu" else 0
        begin = time.process_time()
        took = [_seconds(self._device, self._product) for _ in range(_LOOKS)]
        computed = time.process_time() - begin
        self.seconds.append(median(took))
        self.shares.append(min(computed / sum(took) / cpus, 1.0) if cpus else 1.0)

    def disturbance(self) -> str | None:
        """Evidence that something else ran; None if nothing did.  Collective."""
        slow = sum(seconds > _LONGER * min(self.seconds) for seconds in self.seconds) / len(self.seconds)
        longest, slow, missing = agree(
            (max(self.seconds) / min(self.seconds), slow, 1 - median(self.shares)), self._device
        )
        if slow <= _OFTEN and 1 - missing >= _SHARE:
            return None
        return (
            f"the same matrix product took up to {longest:.1f} times its best time, and longer than usual in "
            f"{slow:.0%} of {len(self.seconds)} samples; a rank had {1 - missing:.0%} of its CPUs"
        )

    def _product(self) -> None:
        self._factor @ self._factor


def _seconds(device: Device, run: Callable[[], Any]) -> float:
    device.synchronize()
    begin = time.perf_counter()
    run()
    device.synchronize()
    return time.perf_counter() - begin
