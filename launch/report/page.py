"""The report of a run: one HTML file with everything in it."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from brt_dist.events import (
    AttemptEvent,
    DivergedEvent,
    HeldEvent,
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
from launch.run.history import History
from launch.views.progress import duration

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #667085; --line: #d9dee7; --page: #f6f7f9; --card: #fff;
  --c0: #1f5fa8; --c1: #c2571a; --c2: #2e7d4f; --c3: #8e44ad; --c4: #0b8a94; --c5: #c2357a; --c6: #7a5a1e;
  --c7: #5b6472; --bad: #b3261e; --good: #2e7d4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --dim: #9aa5b5; --line: #333c49; --page: #12161c;
  --card: #1a2029; --c0: #6fa8e8; --c1: #f09a5e; --c2: #6cc08b; --c3: #c39bd3; --c4: #5cc9d1; --c5: #f08fbb;
  --c6: #d1b06b; --c7: #a5afbd; --bad: #ff8a80; --good: #6cc08b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 34px 0 10px; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 10px; margin-top: 18px; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 14px; } .tile b { display: block; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 12px 14px 6px; }
figcaption { font-weight: 600; display: flex; flex-wrap: wrap; gap: 14px; }
.legend { font-weight: 400; font-size: 13px; display: flex; flex-wrap: wrap; gap: 12px; color: var(--dim); }
.legend span::before { content: ""; display: inline-block; width: 12px; height: 3px; margin: 0 5px 3px 0;
  background: currentColor; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--dim); font-size: 12px; }
polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; } .faint { opacity: .35; stroke-width: 1; }
.grid { stroke: var(--line); } .axis { stroke: var(--dim); }
line.event { stroke: var(--bad); stroke-dasharray: 3 3; stroke-width: 1.4; }
.card { overflow-x: auto; padding: 4px 14px; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border: 0; } th { font-weight: 600; color: var(--dim); } td.n { font-variant-numeric: tabular-nums; }
details summary { cursor: pointer; padding: 8px 0; } code { font-size: 13px; overflow-wrap: anywhere; }
"""
STYLE += "\n".join(
    f".legend .c{n}::before {{ background: var(--c{n}); }} polyline.c{n} {{ stroke: var(--c{n}); }} "
    f"circle.c{n} {{ fill: var(--c{n}); }}"
    for n in range(COLOURS)
)


def write_report(runs: Sequence[Path], path: Path) -> Path:
    """Write the report of the runs in these folders to `path`.  ConfigError: one of them is no run."""
    write_atomic(path, page([RunFacts.of(run) for run in runs]))
    return path


def page(runs: Sequence[RunFacts]) -> str:
    """The report; of several runs, curves side by side and the rest of each below."""
    names = ", ".join(run.name for run in runs)
    body = "".join(_run(run) for run in runs) if len(runs) == 1 else _compared(runs)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(names)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _compared(runs: Sequence[RunFacts]) -> str:
    curves = [
        Curve(run.name, points(run.history, lambda step: step.bits_per_token), number % COLOURS)
        for number, run in enumerate(runs)
    ]
    held_out = [
        Curve(run.name, evaluation_points(run.history, "validation", "carried"), number % COLOURS, marks=True)
        for number, run in enumerate(runs)
    ]
    return (
        f'<h1>{len(runs)} runs</h1><div class="charts">{chart("Loss in training", curves, "bits/token")}'
        f"{chart('Held-out text, memory carried', held_out, 'bits/token')}</div>" + "".join(map(_run, runs))
    )


def _run(run: RunFacts) -> str:
    sections = [
        f'<h1>{escape(run.name)}</h1><div class="dim">{escape(str(run.folder))}</div>',
        _tiles(run),
        "<h2>Curves</h2>" + charts(run),
        "<h2>Attempts</h2>" + _attempts(run),
        "<h2>The plan, and what happened</h2>" + _planned(run),
        "<h2>Evaluations</h2>" + _evaluations(run.history),
        _samples(run),
        "<h2>Checkpoints</h2>" + _checkpoints(run.history),
        "<h2>Told by the guards</h2>" + _guards(run),
        f"<h2>Config</h2>{_config(run)}",
    ]
    return "".join(sections)


def _tiles(run: RunFacts) -> str:
    last = run.history.latest_step() or StepEvent(step=0)
    status = run.status
    tone = "good" if status in ("finished", "running") else "bad" if status not in ("not started", "preempted") else ""
    tiles = [
        ("status", f'<span class="{tone}">{escape(status)}</span>'),
        ("step", f"{last.step:,} of {run.steps:,}"),
        ("loss", _number(last.bits_per_token, "{:.3f} bits/token")),
        ("tokens", f"{last.tokens or 0:,}"),
        ("speed", _number(last.tokens_per_second, "{:,.0f} tokens/s")),
        ("MFU", _utilization(run)),
        ("time in attempts", duration(run.seconds)),
        ("layout", escape(run.layout)),
        ("hosts", escape(", ".join(run.hosts)) or "-"),
    ]
    cells = "".join(f'<div class="tile"><span class="dim">{name}</span><b>{value}</b></div>' for name, value in tiles)
    return f'<div class="tiles">{cells}</div>'


def _utilization(run: RunFacts) -> str:
    last, attempt = run.history.latest_step(), run.history.attempt
    device = attempt.device if attempt else None
    if last is not None and last.mfu is not None:
        return f"{last.mfu:.1%} of {escape(str(device))}"
    return f"not known for {escape(str(device))}" if device else "-"


def _attempts(run: RunFacts) -> str:
    starts = {event.attempt: event.start_step for event in run.events if isinstance(event, AttemptEvent)}
    rows = []
    for record in run.attempts:
        number, decision = record.get("attempt", 0), record.get("decision", {})
        seconds = record["end"] - record["start"] if {"start", "end"} <= record.keys() else None
        follows = f"{decision.get('action', '')}: {decision.get('why', '')}" if decision else ""
        rows.append(
            (number, _time(record.get("start")), "-" if seconds is None else duration(seconds), starts.get(number, "-"),
             record.get("verdict", "running, or its launcher was killed"), record.get("reason", ""), follows)
        )  # fmt: skip
    return _table(("", "begun", "took", "from step", "verdict", "reason", "what followed"), rows)


def _planned(run: RunFacts) -> str:
    """Sizes that follow from the config, beside those of rank 0 after its first step of the last attempt."""
    history = run.history
    plan = history.attempt.plan if history.attempt else None
    if plan is None:
        return '<p class="dim">none</p>'
    held = next((event for event in reversed(run.events) if isinstance(event, HeldEvent)), HeldEvent())
    last, fullest = history.latest_step(), plan.fullest_rank
    rows: list[tuple[str, str, str]] = [
        ("steps", f"{run.steps:,}", f"{history.last_step:,}"),
        ("tokens a step", f"{plan.tokens_per_step:,}", _number(_tokens_per_step(history), "{:,.0f} with a target")),
        ("parameters", f"{plan.parameters:,}", ""),
        ("parameters of a rank", f"{fullest.parameters:,} at most", _number(held.parameters, "{:,}, rank 0")),
    ]
    for name, planned, found in (
        ("weights", fullest.weights, held.weights),
        ("optimizer", fullest.optimizer, held.optimizer),
        ("states and window caches", fullest.carried, held.carried),
    ):
        rows.append((f"{name} of a rank", f"{_bytes(planned)} at most", f"{_bytes(found)}, rank 0"))
    peak = last.peak_memory_bytes if last else None
    rows += [
        ("memory at its peak", "activations and libraries are not planned", _bytes(peak)),
        ("operations a step", f"{plan.flops_per_step:.3g} FLOP", ""),
    ]
    return _table(("", "planned", "happened"), rows)


def _tokens_per_step(history: History) -> float | None:
    """Mean over the steps that were logged."""
    known = points(history, lambda step: step.tokens)
    if len(known) < 2:
        return None
    (first, before), (last, after) = known[0], known[-1]
    return (after - before) / (last - first)


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _evaluations(history: History) -> str:
    rows = [
        (f"{step:,}", NAMES.get(dataset, dataset), memory, f"{event.bits_per_token:.4f}", f"{event.tokens:,}")
        for (step, dataset, memory), event in sorted(history.evaluations.items(), reverse=True)
        if event.bits_per_token is not None and event.tokens is not None
    ]
    return _table(("step", "text", "memory", "bits/token", "tokens"), rows)


def _samples(run: RunFacts) -> str:
    """What the model made up at the last evaluation that asked for it."""
    event = next((event for event in reversed(run.events) if isinstance(event, SampleEvent)), None)
    if event is None:
        return ""
    rows = [(one.document, one.prompt[-200:], one.text) for one in event.samples]
    return f"<h2>Made up at step {event.step:,}</h2>" + _table(("document", "after", "the model went on"), rows)


def _checkpoints(history: History) -> str:
    rows = [
        (f"{step:,}", event.path or "", _bytes(event.bytes), _seconds(event.seconds), _seconds(event.stall_seconds),
         _time(event.time))
        for step, event in sorted(history.checkpoints.items(), reverse=True)
    ]  # fmt: skip
    return _table(("step", "place", "size", "written in", "training stopped for", "at"), rows)


def _guards(run: RunFacts) -> str:
    rows: list[tuple[Any, ...]] = []
    for event in run.events:
        if isinstance(event, MessageEvent):
            rows.append(("-", event.kind, event.message, _time(event.time)))
        elif isinstance(event, SkipEvent | SpikeEvent | StragglerEvent | DivergedEvent):
            said = ", ".join(f"{key} {_plain(value)}" for key, value in event.details().items())
            rows.append(("-" if event.step is None else event.step, event.kind, said, _time(event.time)))
    return _table(("step", "", "", "at"), rows[-200:])


def _config(run: RunFacts) -> str:
    rows = [(key, _plain(value), run.origins.get(key, "")) for key, value in run.config.items()]
    table = _table(("key", "value", "from"), rows)
    return f"<details><summary>{len(rows)} values and where they came from</summary>{table}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f'<td class="n">{escape(str(c))}</td>' for c in row) + "</tr>" for row in rows)
    if not cells:
        return '<p class="dim">none</p>'
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="card"><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _bytes(value: Any) -> str:
    return f"{value / 1e6:,.1f} MB" if isinstance(value, int | float) else "-"


def _seconds(value: Any) -> str:
    return f"{value:.2f} s" if isinstance(value, int | float) else "-"


def _time(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
