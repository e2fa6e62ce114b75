"""Metrics of a node's CPUs, memory, disk, network and GPUs, which its agent samples to RUN/system/HOST.jsonl.

They have the names of MLflow's own system metrics, so that its UI shows them as such.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from brt_dist.events import SystemEvent, line_of
from brt_dist.run_directory import RunDirectory

_MEGABYTE = 1e6


class SystemSampler:
    """Appends a sample every `seconds` from its own thread, until `stop` or the end of the process.

    The run never waits for it, and if the disk is full or unavailable only samples are lost.
    """

    def __init__(self, run: Path, seconds: float) -> None:
        self._path = RunDirectory(run).system_metrics(socket.gethostname())
        self._run, self._seconds = run, seconds
        self._stopped = threading.Event()
        threading.Thread(target=self._sample_until_stopped, name="system metrics", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _sample_until_stopped(self) -> None:
        probe = _Probe(self._run)
        while not self._stopped.wait(self._seconds):
            event = SystemEvent(time=time.time(), values=probe.values())
            with suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                with open(self._path, "ab") as file:
                    file.write(line_of(event))


class _Probe:
    def __init__(self, run: Path) -> None:
        import psutil

        self._psutil, self._run = psutil, run
        psutil.cpu_percent()  # the first call starts the measurement
        self._network = psutil.net_io_counters()
        self._gpus = _gpus()

    def values(self) -> dict[str, float]:
        psutil = self._psutil
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(self._run)), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1),
        }
        if network is not None and self._network is not None:
            for name, now, before in (
                ("network_receive_megabytes", network.bytes_recv, self._network.bytes_recv),
                ("network_transmit_megabytes", network.bytes_sent, self._network.bytes_sent),
            ):
                found[name] = max(now - before, 0) / _MEGABYTE  # since the previous sample
            self._network = network
        for number, handle in enumerate(self._gpus):
            found |= {f"gpu_{number}_{name}": value for name, value in _gpu_values(handle)}
        return found


def _gpus() -> list[Any]:
    """A handle of each GPU; empty without an NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu_values(handle: Any) -> Iterator[tuple[str, float]]:
    """The values that this GPU and its driver report; virtual GPUs do not report all of them."""
    import pynvml

    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        yield "memory_usage_megabytes", memory.used / _MEGABYTE
        yield "memory_usage_percentage", 100 * memory.used / memory.total
    with suppress(pynvml.NVMLError):
        yield "utilization_percentage", float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with suppress(pynvml.NVMLError):
        yield "power_usage_watts", pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    with suppress(pynvml.NVMLError):
        yield "temperature_celsius", float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
