"""Times what all ranks of a machine do at once."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import agree

_FEWEST, _MOST = 3, 100  # repeats


class Clock:
    """Medians over as many repeats as fit into some seconds; ranks begin together and repeat equally often.

    Args:
        device: of this rank.
        seconds: for one measurement, about.
    """

    def __init__(self, device: Device, seconds: float) -> None:
        self._device, self._seconds = device, seconds

    def __call__(self, run: Callable[[], Any]) -> float:
        """Seconds that `run` takes, work of the device included.  Collective."""
        self._once(run)  # memory is allocated, kernels are compiled
        (slowest,) = agree((self._once(run),), self._device)
        repeats = min(max(int(self._seconds / max(slowest, 1e-9)), _FEWEST), _MOST)
        agree((0.0,), self._device)
        return median(self._once(run) for _ in range(repeats))

    def _once(self, run: Callable[[], Any]) -> float:
        self._device.synchronize()
        begin = time.perf_counter()
        run()
        self._device.synchronize()
        return time.perf_counter() - begin
