"""Shows the measurements of a machine; and corrects a calibration by runs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from brt_dist.config.loading import load
from brt_dist.errors import ConfigError
from brt_dist.event_log import read_events
from brt_dist.events import AttemptEvent, StepEvent
from brt_dist.planning.devices import Calibration, DeviceSpec, read_device
from brt_dist.planning.layout_plan import Planner
from brt_dist.run_directory import RunDirectory
from launch.run.sizes import with_vocabulary
from pipelines.tables import table, text_of

_FEWEST = 3  # steps of a run, after the first


def calibration_text(found: Calibration) -> str:
    """A column for each number of ranks."""
    counts = sorted(found.ranks)
    rows = [(name, *(value(found.ranks[count]) for count in counts)) for name, value in _ROWS.items()]
    mixers = dict.fromkeys(mixer for count in counts for mixer in found.ranks[count].mixer_passes)
    for mixer in mixers:
        rows.append((f"passes over activations, {mixer}", *(_passes(found.ranks[count], mixer) for count in counts)))
    head = (found.measured, *(f"{count} rank{'s' if count > 1 else ''}" for count in counts))
    return text_of(table(head, rows, right=head[1:]))


_ROWS = {
    "matrix products, bf16": lambda spec: f"{spec.peak_flops.bf16 * spec.matmul_efficiency / 1e12:,.3g} TFLOP/s",
    "matrix products, fp32": lambda spec: f"{spec.peak_flops.fp32 * spec.matmul_efficiency / 1e12:,.3g} TFLOP/s",
    "attention, share of the peak": lambda spec: f"{spec.attention_efficiency:.0%}",
    "memory": lambda spec: f"{spec.memory_rate / 1e9:,.3g} GB/s",
    "passes over activations, window": lambda spec: f"{spec.activation_passes:.1f}",
    "passes over gradients": lambda spec: f"{spec.gradient_passes:.1f}",
    "passes over logits": lambda spec: f"{spec.logits_passes:.1f}",
    "passes over an update's data": lambda spec: f"{spec.update_passes:.1f}",
    "host time of an operation": lambda spec: f"{spec.launch_seconds * 1e6:.1f} us",
    "links": lambda spec: f"{spec.link_rate * spec.link_efficiency / 1e9:,.3g} GB/s",
    "links, between products": lambda spec: f"{spec.tensor_share:.0%}",
    "a collective": lambda spec: f"{spec.link_seconds * 1e6:,.0f} us",
    "disk": lambda spec: "" if spec.disk_rate is None else f"{spec.disk_rate / 1e9:,.3g} GB/s",
}


def _passes(spec: DeviceSpec, mixer: str) -> str:
    """How many times layers with a mixer pass over their activations."""
    return f"{spec.mixer_passes[mixer]:.1f}" if mixer in spec.mixer_passes else ""


def warnings(found: Calibration) -> list[str]:
    """Warnings for a machine that did other work while it was measured."""
    return [
        f"warning: something else used the machine while {ranks} ranks were measured: {what}. Plans from this file are "
        "unreliable; nearest: stop everything else (`top` shows it), then brt plan --calibrate again"
        for ranks, what in sorted(found.disturbed.items())
    ]


def corrected(path: Path, runs: Sequence[Path]) -> tuple[Calibration, str]:
    """The calibration in a file, with its compute corrected by the times of runs.

    Returns:
        The calibration, and what each run showed.

    Raises:
        ConfigError: the file is no calibration, or a run has too few steps to tell.
    """
    found = read_device(path) if path.is_file() else None
    if not isinstance(found, Calibration):
        raise ConfigError(f"{path} is not a calibration file; nearest: brt plan --calibrate --out {path}")
    factors, rows = [], []
    for run in runs:
        took, planned, compute = _step(run, found)
        factors.append(max(1 + (took - planned) / compute, 0.1))
        rows.append((str(run), f"{planned:.3f} s", f"{took:.3f} s", f"{took / planned - 1:+.0%}"))
    factor = median(factors)
    ranks = {
        count: spec.model_copy(update={"correction": spec.correction * factor}) for count, spec in found.ranks.items()
    }
    head = ("run", "planned", "took", "")
    words = f"{text_of(table(head, rows, right=head[1:]))}\n\ncompute is now planned {factor:.2f} times as long"
    return found.model_copy(update={"ranks": ranks}), words


def _step(folder: Path, calibration: Calibration) -> tuple[float, float, float]:
    """Seconds of a step of a run's last attempt: measured, planned, and the plan's compute."""
    run = RunDirectory.existing(folder)
    config = load(run.config).config
    events, known = read_events(folder), with_vocabulary(config, ask_servers=False)
    attempt = next((event for event in reversed(events) if isinstance(event, AttemptEvent)), None)
    steps = [
        event.step_seconds
        for event in events
        if isinstance(event, StepEvent) and attempt and event.attempt == attempt.attempt and event.step_seconds
    ][1:]
    if attempt is None or known is None or len(steps) < _FEWEST:
        raise ConfigError(f"{folder}: no times to use: no attempt has {_FEWEST + 1} steps and a known vocabulary")
    device: DeviceSpec = calibration.of(max((attempt.world_size or 1) // config.launch.nodes, 1))
    plan = Planner(known, device).plan(config.parallel.model_copy(update={"data": attempt.layout.data or 1}))
    return median(steps), plan.time.total, plan.time.compute
