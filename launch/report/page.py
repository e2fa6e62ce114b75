"""The report of a run: one HTML file with everything in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from brt_dist.events import (
    AttemptEvent,
    DivergedEvent,
    DriftEvent,
    HeldEvent,
    IgnoredStateEvent,
    MessageEvent,
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StepEvent,
    StragglerEvent,
)
from brt_dist.files import write_atomic
from launch.report.charts import Curve, chart
from launch.report.collect import RunFacts
from launch.report.curves import COLOURS, NAMES, charts, evaluation_points, points
from launch.report.templates import render
from launch.run.history import History
from launch.views.progress import duration


@dataclass(frozen=True)
class ReportTable:
    """A heading with a table below it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_report(runs: Sequence[Path], path: Path) -> Path:
    """Write the report of the runs in these folders to `path`.

    Raises:
        ConfigError: one of the folders holds no run.
    """
    write_atomic(path, page([RunFacts.of(run) for run in runs]))
    return path


def page(runs: Sequence[RunFacts]) -> str:
    """The report; for several runs, their curves are compared first and each run follows."""
    compared = _compared(runs) if len(runs) > 1 else None
    return render("page.html.jinja", runs=[_run(run) for run in runs], compared=compared, colours=COLOURS)


def _compared(runs: Sequence[RunFacts]) -> list[Markup]:
    curves = [
        Curve(run.name, points(run.history, lambda step: step.bits_per_token), number % COLOURS)
        for number, run in enumerate(runs)
    ]
    held_out = [
        Curve(run.name, evaluation_points(run.history, "validation", "carried"), number % COLOURS, marks=True)
        for number, run in enumerate(runs)
    ]
    figures = [
        chart("Training loss", curves, "bits/token"),
        chart("Held-out loss, memory carried", held_out, "bits/token"),
    ]
    return [figure for figure in figures if figure]


def _run(run: RunFacts) -> dict[str, Any]:
    """The values of a run for the template."""
    sections = [_attempts(run), _planned(run), _evaluations(run.history), *_samples(run), _checkpoints(run.history)]
    return {
        "name": run.name,
        "folder": run.folder,
        "tiles": _tiles(run),
        "figures": charts(run),
        "sections": [*sections, _guards(run)],
        "config": _config(run),
    }


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """Name, value and tone of the tiles at the top."""
    last = run.history.latest_step() or StepEvent(step=0)
    status = run.status
    tone = "good" if status in ("finished", "running") else "bad" if status not in ("not started", "preempted") else ""
    return [
        ("status", status, tone),
        ("step", f"{last.step:,} of {run.steps:,}", ""),
        ("loss", _number(last.bits_per_token, "{:.3f} bits/token"), ""),
        ("tokens", f"{last.tokens or 0:,}", ""),
        ("speed", _number(last.tokens_per_second, "{:,.0f} tokens/s"), ""),
        ("MFU", _utilization(run), ""),
        ("time in attempts", duration(run.seconds), ""),
        ("layout", run.layout, ""),
        ("hosts", ", ".join(run.hosts) or "-", ""),
    ]


def _utilization(run: RunFacts) -> str:
    last, attempt = run.history.latest_step(), run.history.attempt
    device = attempt.device if attempt else None
    if last is not None and last.mfu is not None:
        return f"{last.mfu:.1%} of {device}"
    return f"unknown for {device}" if device else "-"


def _attempts(run: RunFacts) -> ReportTable:
    starts = {event.attempt: event.start_step for event in run.events if isinstance(event, AttemptEvent)}
    rows = []
    for record in run.attempts:
        decision = record.decision
        seconds = None if record.start is None or record.end is None else record.end - record.start
        follows = f"{decision.get('action', '')}: {decision.get('why', '')}" if decision else ""
        rows.append(
            (record.attempt, _time(record.start), "-" if seconds is None else duration(seconds),
             starts.get(record.attempt, "-"), record.verdict or "running, or its launcher was killed", record.reason,
             follows)
        )  # fmt: skip
    return ReportTable("Attempts", ("", "started", "duration", "resumed after step", "verdict", "reason", "next"), rows)


def _planned(run: RunFacts) -> ReportTable:
    """Sizes computed from the config, beside those measured on rank 0 after the first step of the last attempt."""
    title, history = "Planned and measured", run.history
    plan = history.attempt.plan if history.attempt else None
    if plan is None:
        return ReportTable(title, (), ())
    held = next((event for event in reversed(run.events) if isinstance(event, HeldEvent)), HeldEvent())
    last, fullest = history.latest_step(), plan.fullest_rank
    rows: list[tuple[str, str, str]] = [
        ("steps", f"{run.steps:,}", f"{history.last_step:,}"),
        ("tokens per step", f"{plan.tokens_per_step:,}", _number(_tokens_per_step(history), "{:,.0f} with a target")),
        ("parameters", f"{plan.parameters:,}", ""),
        ("parameters per rank", f"{fullest.parameters:,} at most", _number(held.parameters, "{:,}, rank 0")),
    ]
    for name, planned, found in (
        ("weights", fullest.weights, held.weights),
        ("optimizer", fullest.optimizer, held.optimizer),
        ("states and window caches", fullest.carried, held.carried),
        ("gradients", fullest.gradients, None),
        ("all on the device, but activations", fullest.device, None),
        ("all in host memory", fullest.host, None),
    ):
        if planned is not None:
            measured = "-" if found is None else f"{_bytes(found)}, rank 0"
            rows.append((f"{name} per rank", f"{_bytes(planned)} at most", measured))
    peak = last.peak_memory_bytes if last else None
    rows += [
        ("peak memory", "not computed: depends on activations and libraries", _bytes(peak)),
        ("compute per step", f"{plan.flops_per_step:.3g} FLOP", ""),
    ]
    return ReportTable(title, ("", "planned", "measured"), rows)


def _tokens_per_step(history: History) -> float | None:
    """Mean over the logged steps."""
    known = points(history, lambda step: step.tokens)
    if len(known) < 2:
        return None
    (first, before), (last, after) = known[0], known[-1]
    return (after - before) / (last - first)


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _evaluations(history: History) -> ReportTable:
    rows = [
        (f"{step:,}", NAMES.get(dataset, dataset), memory, f"{event.bits_per_token:.4f}", f"{event.tokens:,}")
        for (step, dataset, memory), event in sorted(history.evaluations.items(), reverse=True)
        if event.bits_per_token is not None and event.tokens is not None
    ]
    return ReportTable("Evaluations", ("step", "dataset", "memory", "bits/token", "tokens"), rows)


def _samples(run: RunFacts) -> list[ReportTable]:
    """Text generated by the model at the last evaluation with samples."""
    event = next((event for event in reversed(run.events) if isinstance(event, SampleEvent)), None)
    if event is None:
        return []
    rows = [(one.document, one.prompt[-200:], one.text) for one in event.samples]
    return [ReportTable(f"Samples at step {event.step:,}", ("document", "prompt", "continuation"), rows)]


def _checkpoints(history: History) -> ReportTable:
    rows = [
        (f"{step:,}", event.path or "", _bytes(event.bytes), _seconds(event.seconds), _seconds(event.stall_seconds),
         _time(event.time))
        for step, event in sorted(history.checkpoints.items(), reverse=True)
    ]  # fmt: skip
    return ReportTable("Checkpoints", ("step", "path", "size", "write time", "training stalled", "saved at"), rows)


def _guards(run: RunFacts) -> ReportTable:
    rows: list[tuple[Any, ...]] = []
    for event in run.events:
        if isinstance(event, MessageEvent):
            rows.append(("-", event.kind, event.message, _time(event.time)))
        elif isinstance(
            event, SkipEvent | SpikeEvent | StragglerEvent | DivergedEvent | DriftEvent | IgnoredStateEvent
        ):
            said = ", ".join(f"{key} {_plain(value)}" for key, value in event.details().items())
            rows.append(("-" if event.step is None else event.step, event.kind, said, _time(event.time)))
    return ReportTable("Guards and messages", ("step", "event", "details", "at"), rows[-200:])


def _config(run: RunFacts) -> ReportTable:
    rows = [(key, _plain(value), run.origins.get(key, "")) for key, value in run.config.items()]
    return ReportTable("Config", ("key", "value", "origin"), rows)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unset" if value is None else str(value)


def _bytes(value: Any) -> str:
    return f"{value / 1e6:,.1f} MB" if isinstance(value, int | float) else "-"


def _seconds(value: Any) -> str:
    return f"{value:.2f} s" if isinstance(value, int | float) else "-"


def _time(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
