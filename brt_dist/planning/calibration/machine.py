"""Measures this machine with ranks in separate processes, and combines the results into a device."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import Any

import yaml

from brt_dist.config.environment import CPU_DEFAULTS
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.files import write_atomic
from brt_dist.planning.calibration.fitting import MeasuredStep, StepShape, fitted, of_mixers, of_tensor
from brt_dist.planning.devices import FORMAT, Calibration, DeviceSpec, device_of_driver, device_spec, this_machine
from brt_dist.versions import library_versions

_SECONDS = 100.0  # of all measurements, about
_MEASUREMENTS = 40  # with some number of ranks
_LIMIT = 300.0  # seconds for one measurement until we give up on ranks
_HEAD = "# Measured by `brt plan --calibrate`; read by `brt plan --device FILE` and `launch.gpu_kind`.\n"


def calibrate(kind: str, folder: Path, tell: Callable[[str], None], seconds: float = _SECONDS) -> Calibration:
    """Measure this machine.

    Args:
        kind: "cpu" or "cuda".
        folder: on the disk to measure.
        tell: called with what is measured next.
        seconds: total of all measurements, about; starting the ranks is extra.

    Raises:
        PlatformError: there is no such device, or a rank failed or took too long.
    """
    counts, found, disturbed = _counts(kind), {}, {}
    for ranks in counts:
        each = seconds / len(counts) / _MEASUREMENTS
        result = _measured(kind, ranks, folder, each, lambda now: tell(f"{ranks} ranks: {now}"))  # noqa: B023
        if (what := result.pop("disturbed")) is not None:
            disturbed[ranks] = what
        found[ranks] = _device(kind, ranks, result, is_disturbed=ranks in disturbed)
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    machine = f"{platform.node()}, torch {library_versions()['torch']}"
    return Calibration(format=FORMAT, measured=f"{when} UTC on {machine}", disturbed=disturbed, ranks=found)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration, for `brt plan --device FILE`.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_atomic(path, _HEAD + yaml.safe_dump(calibration.model_dump(), sort_keys=False))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _counts(kind: str) -> list[int]:
    """Numbers of ranks to measure: 1, doubled up to all cores; or all GPUs."""
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise PlatformError("there is no GPU on this machine; nearest: --device cpu")
        return [torch.cuda.device_count()]
    cores = os.cpu_count() or 1
    return sorted({*(2**doubled for doubled in range(cores.bit_length()) if 2**doubled <= cores), cores})


def _measured(kind: str, ranks: int, folder: Path, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """The results of rank 0, of `ranks` ranks."""
    program = [sys.executable, "-m", "brt_dist.planning.calibration.rank"]
    with tempfile.TemporaryDirectory(dir=folder) as own, ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            log = stack.enter_context(open(Path(own) / f"log-{rank}", "wb"))
            given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            defaults = CPU_DEFAULTS if kind == "cpu" else {}  # as ranks have
            environment = {**defaults, **os.environ, **{name: str(value) for name, value in given.items()}}
            environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // ranks, 1))
            if Path("/sys/class/net/lo").exists():
                environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            process = subprocess.Popen(
                [*program, own, kind, str(seconds)], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)

        def kill_all() -> None:
            for process in processes:
                process.kill()

        limit = _Limit(_LIMIT, kill_all)
        stack.callback(limit.end)
        limit.begin("starting")
        result: dict[str, Any] | None = None
        for line in processes[0].stdout or ():
            if not line.startswith("{"):  # a library's
                continue
            told = json.loads(line)
            if "now" in told:
                limit.begin(told["now"])
                tell(told["now"])
            else:
                result = told
        failed = [rank for rank, process in enumerate(processes) if process.wait() and limit.passed is None]
        if result is None or failed:
            first = failed[0] if failed else 0
            words = (Path(own) / f"log-{first}").read_text(errors="replace").strip().splitlines()
            if limit.passed is not None:
                why = f"took more than {_LIMIT:.0f} s for {limit.passed}"
            else:
                why = f"failed ({words[-1] if words else 'no output'})"
            raise PlatformError(f"calibration: rank {first} of {ranks} {why}; nearest: brt doctor")
        return result


class _Limit:
    """Calls `give_up` when one thing takes longer than `seconds`.

    Attributes:
        passed: what took longer; None: nothing has.
    """

    def __init__(self, seconds: float, give_up: Callable[[], object]) -> None:
        self._seconds, self._give_up = seconds, give_up
        self._timer: Timer | None = None
        self.passed: str | None = None

    def begin(self, what: str) -> None:
        """Whatever began before is done, and this begins."""
        self.end()
        self._timer = Timer(self._seconds, self._pass, (what,))
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self, what: str) -> None:
        self.passed = what
        self._give_up()


def _device(kind: str, ranks: int, result: dict[str, Any], is_disturbed: bool) -> DeviceSpec:
    """The device with measurements instead of assumptions."""
    name, memory, best = result.pop("name"), result.pop("memory"), result["peak_flops"]
    steps = [_step(one) for one in result.pop("steps")]
    of_each = {mixer: _step(one) for mixer, one in result.pop("mixer_steps").items()}
    of_tensor_ranks = result.pop("tensor_step", None)
    if kind == "cpu":
        base = this_machine(ranks)
        fixed: dict[str, Any] = {}
    else:  # shares refer to the peak that MFU is measured against
        base = device_of_driver(name) or device_spec("h100").model_copy(update={"price": None})
        fixed = {"name": name, "memory": memory, "devices_per_node": ranks}
        peaks = base.peak_flops if base.name == name else None
        if peaks is not None:
            share = best["bf16"] / peaks.bf16
            fixed |= {"peak_flops": peaks.model_dump(), "matmul_efficiency": min(share, 1.0)}
            fixed["attention_efficiency"] = min(result["attention_efficiency"] * share, 1.0)
    if "link_rate" in result:
        fixed["link_efficiency"] = 1.0
        if kind == "cpu":
            fixed["network_rate"] = result["link_rate"]
    source = "measured by brt plan --calibrate" + (", disturbed by other work" if is_disturbed else "")
    changes = {**result, **fixed, "source": source, "is_timed": True}
    device = DeviceSpec.model_validate({**base.model_dump(), **changes})
    device = of_mixers(fitted(device, kind, ranks, steps), kind, ranks, of_each)
    return device if of_tensor_ranks is None else of_tensor(device, kind, ranks, _step(of_tensor_ranks))


def _step(written: Sequence[Any]) -> MeasuredStep:
    """A step as written by a rank."""
    shape, compute, update = written
    return MeasuredStep(StepShape(*shape), compute, update)
