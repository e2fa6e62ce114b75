"""The report of a run: one HTML file with everything in it."""

import json
from collections.abc import Sequence
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
from launch.report.collect import RunFacts, labels
from launch.report.curves import COLOURS, NAMES, charts, evaluation_points, gain_curve, points, smoothed
from launch.report.sweep import Swept, parallel, sweep_table
from launch.report.tables import ReportTable
from launch.report.templates import render
from launch.run.history import History
from launch.views.planned import Compared
from launch.views.progress import duration
from launch.views.smoothing import settled
from launch.views.summary import verdict_words


def write_report(runs: Sequence[Path], path: Path, sweep: Swept | None = None) -> Path:
    """Write the report of the runs in these folders to `path`.

    Args:
        runs: run directories.
        path: of the file.
        sweep: the sweep whose runs these are.

    Raises:
        ConfigError: one of the folders holds no run.
    """
    text = page([RunFacts.of(run) for run in runs], sweep)
    write_atomic(path, text.encode(errors="backslashreplace"))  # a path may hold bytes that are not text
    return path


def page(runs: Sequence[RunFacts], sweep: Swept | None = None) -> str:
    """The report; for several runs, their curves are compared first and each run follows."""
    names = labels(runs)
    scales = json.dumps([run.scales() for run in runs]).replace("<", "\\u003c")
    return render(
        "page.html.jinja",
        title=", ".join(names),
        runs=[_run(run, name, number) for number, (run, name) in enumerate(zip(runs, names, strict=True))],
        compared=_compared(runs, names) if len(runs) > 1 else None,
        sweep=None if sweep is None else {"title": sweep.title, "best": sweep.best, "table": sweep_table(sweep)},
        parallel=None if sweep is None else parallel(sweep),
        colours=COLOURS,
        scales=Markup(scales),
    )


def _compared(runs: Sequence[RunFacts], names: Sequence[str]) -> list[Markup]:
    training, held_out, gains = list[Curve](), list[Curve](), list[Curve]()
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        colour, history = number % COLOURS, run.history
        training += smoothed(name, points(history, lambda step: step.bits_per_token), colour, run, number)
        found = evaluation_points(history, "validation", "carried")
        counts = settled(found, run.warmup)
        held_out.append(Curve(name, found, colour, marks=True, run=number, counts=counts))
        gains.append(gain_curve(name, history, "validation", colour, number))
    figures = [
        chart("Training loss", training, "bits/token"),
        chart("Held-out loss, memory carried", held_out, "bits/token"),
        chart("What memory gains on held-out text", gains, "bits/token"),
    ]
    return [figure for figure in figures if figure]


def _run(run: RunFacts, name: str, number: int) -> dict[str, Any]:
    """The values of a run for the template."""
    changed, usual = _config(run)
    return {
        "name": name,
        "folder": run.folder,
        "first": _held_out(run),
        "tiles": _tiles(run),
        "figures": charts(run, number),
        "sections": [
            _evaluations(run.history),
            *_samples(run),
            _attempts(run),
            _planned(run),
            _checkpoints(run.history),
            _guards(run),
            _about(run),
        ],
        "changed": changed,
        "usual": usual,
    }


def _held_out(run: RunFacts) -> dict[str, str]:
    """The first tile: bits per token with memory carried and cleared, and the difference."""
    history = run.history
    for dataset in ("validation", "train"):
        carried = evaluation_points(history, dataset, "carried")
        if not carried:
            continue
        step, bits = carried[-1]
        cleared = dict(evaluation_points(history, dataset, "cleared")).get(step)
        about = {"name": f"{NAMES[dataset]}, bits/token at step {step:,.0f}", "value": f"{bits:.3f}", "of": "carried"}
        if cleared is not None:
            about |= {"cleared": f"{cleared:.3f}", "gain": f"{cleared - bits:+.3f}"}
        return about
    last = history.latest_step()
    value = "-" if last is None or last.bits_per_token is None else f"{last.bits_per_token:.3f}"
    return {"name": "training, bits/token (not evaluated yet)", "value": value, "of": ""}


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """Name, value and tone of the tiles after the first."""
    last = run.history.latest_step() or StepEvent(step=0)
    status = run.status
    tone = "good" if status in ("finished", "running") else "bad" if status not in ("not started", "preempted") else ""
    epochs = "" if run.epochs is None else f" ({run.epochs:.3g} epochs)"
    return [
        ("status", verdict_words(status), tone),
        ("step", f"{last.step:,} of {run.steps:,}", ""),
        ("training loss", _number(last.bits_per_token, "{:.3f} bits/token"), ""),
        *_state(run),
        ("tokens", f"{last.tokens or 0:,}{epochs}", ""),
        ("parameters", _number(run.parameters, "{:,}"), ""),
        ("speed", _number(last.tokens_per_second, "{:,.0f} tokens/s"), ""),
        ("MFU", _utilization(run), ""),
        ("time in attempts", duration(run.seconds), ""),
    ]


def _state(run: RunFacts) -> list[tuple[str, str, str]]:
    """What the carried state is worth at the last evaluation that shows it; bad if the run was warned there."""
    warned = {event.step for event in run.events if isinstance(event, IgnoredStateEvent)}
    for dataset in ("validation", "train"):
        carried = dict(evaluation_points(run.history, dataset, "carried"))
        for step, bits in reversed(evaluation_points(run.history, dataset, "state cleared")):
            if step in carried:
                tone = "bad" if step in warned else ""
                return [("the state is worth", f"{bits - carried[step]:+.3f} bits/token", tone)]
    return []


def _about(run: RunFacts) -> ReportTable:
    """Where the run ran, and with which code."""
    record = run.attempts[-1] if run.attempts else None
    versions = ", ".join(f"{name} {version}" for name, version in (record.versions if record else {}).items())
    rows = [
        ("directory", str(run.folder.absolute())),
        ("layout", run.layout),
        ("hosts", ", ".join(run.hosts) or "-"),
        ("commit", (record.git_commit if record else None) or "-"),
        ("versions", versions or "-"),
    ]
    return ReportTable("Code and machines", ("", ""), rows)


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
        verdict = verdict_words(record.verdict) if record.verdict else "running, or its launcher was killed"
        rows.append(
            (record.attempt, _time(record.start), "-" if seconds is None else duration(seconds),
             starts.get(record.attempt, "-"), verdict, record.reason, follows)
        )  # fmt: skip
    return ReportTable("Attempts", ("", "started", "duration", "resumed after step", "verdict", "reason", "next"), rows)


def _planned(run: RunFacts) -> ReportTable:
    """Sizes computed from the config, beside those measured on rank 0 after the first step of the last attempt."""
    title, history = "Predicted and measured", run.history
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
    rows.append(("compute per step", f"{plan.flops_per_step:.3g} FLOP", ""))
    rows += [(one.name, _value(one, one.planned), _value(one, one.measured)) for one in run.planned]
    if not run.planned:
        peak = last.peak_memory_bytes if last else None
        rows.append(("peak memory", "not known for this device", _bytes(peak)))
    return ReportTable(title, ("", "predicted", "measured"), rows)


def _value(one: Compared, value: float | None) -> str:
    if value is None:
        return "-"
    return {"bytes": _bytes, "seconds": _seconds, "share": "{:.1%}".format}[one.unit](value)


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
    """One row per step, with the uses of memory side by side."""
    found = {key: event for key, event in history.evaluations.items() if event.bits_per_token is not None}
    order = {"carried": 0, "cleared": 1}
    kinds = sorted({key[1:] for key in found}, key=lambda kind: (kind[0] == "train", order.get(kind[1], 2), kind))
    head = ["step"]
    for dataset, memory in kinds:
        head.append(f"{NAMES.get(dataset, dataset)}, {memory}")
        if memory == "cleared":
            head.append("gain")
    rows = []
    for step in sorted({key[0] for key in found}, reverse=True):
        cells = [f"{step:,}"]
        for dataset, memory in kinds:
            event, carried = found.get((step, dataset, memory)), found.get((step, dataset, "carried"))
            bits = None if event is None else event.bits_per_token
            cells.append(_number(bits, "{:.4f}"))
            if memory == "cleared":
                before = None if carried is None else carried.bits_per_token
                cells.append("-" if bits is None or before is None else f"{bits - before:+.4f}")
        rows.append(cells)
    return ReportTable("Evaluations (bits/token)", head, rows)


def _samples(run: RunFacts) -> list[ReportTable]:
    """Text generated by the model at the last evaluation with samples."""
    event = next((event for event in reversed(run.events) if isinstance(event, SampleEvent)), None)
    if event is None:
        return []
    rows = [(one.document, one.prompt[-400:], one.text) for one in event.samples]
    return [ReportTable(f"Samples at step {event.step:,}", ("document", "prompt", "continuation"), rows, text=True)]


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
    return ReportTable("Warnings and messages", ("step", "event", "details", "at"), rows[-200:])


def _config(run: RunFacts) -> tuple[ReportTable, ReportTable]:
    """The values that were set, and the defaults."""
    rows = [(key, _plain(value), run.origins.get(key, "")) for key, value in run.config.items()]
    head = ("key", "value", "origin")
    changed = [row for row in rows if row[2] != "default"]
    usual = [row[:2] for row in rows if row[2] == "default"]
    return ReportTable("Config", head, changed), ReportTable("Defaults", head[:2], usual)


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
