"""The timeline of a simulated step as one HTML file: a row for each stage of each data parallel rank."""

from html import escape

from brt_dist.planning.simulator.instructions import Kind
from brt_dist.planning.simulator.step import Interval, Step

_ROW, _GAP, _LEFT, _WIDTH, _TOP, _TICKS = 26, 6, 116, 1200, 26, 10
_MOST = 20_000  # number of intervals drawn
_STYLE = {
    Kind.FORWARD: ("forward", "#1f5fa8"),
    Kind.BACKWARD: ("backward", "#2e7d4f"),
    Kind.SEND_ACTIVATION: ("transfer", "#8a6d00"),
    Kind.RECEIVE_ACTIVATION: ("transfer", "#8a6d00"),
    Kind.SEND_GRADIENT: ("transfer", "#8a6d00"),
    Kind.RECEIVE_GRADIENT: ("transfer", "#8a6d00"),
    Kind.REDUCE_TIED: ("reduction", "#c2571a"),
    Kind.REDUCE: ("reduction", "#c2571a"),
    Kind.UPDATE: ("update", "#7a3fa0"),
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c2430; --dim: #667085; --line: #d9dee7; --page: #fff; --wait: #eef0f4; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e7ebf0; --dim: #9aa5b5; --line: #333c49; --page: #12161c;
  --wait: #1f2630; }} }}
body {{ margin: 24px; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 20px; margin: 0; }} p {{ margin: 4px 0 12px; color: var(--dim); }}
svg {{ width: 100%; min-width: 900px; height: auto; }} text {{ fill: var(--dim); font: 12px system-ui, sans-serif; }}
.wait {{ fill: var(--wait); }} .tick {{ stroke: var(--line); }}
.n {{ fill: #fff; font-size: 10px; text-anchor: middle; pointer-events: none; }}
.legend span {{ margin-right: 18px; white-space: nowrap; }}
.legend i {{ display: inline-block; width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px; }}
</style>
<h1>{title}</h1><p>{summary}</p><p class="legend">{legend}</p>
{drawing}
</html>
"""


def timeline_html(step: Step, title: str) -> str:
    """The page."""
    shown, until = _shown(step)
    summary = f"{step.seconds:.4g} s, of which ranks wait {step.bubble:.1%}."
    if until < step.seconds:
        summary += f" Shown are the first {until:.4g} s."
    if step.stuck:
        summary += f" Never finished: {len(step.stuck)} places wait forever."
    entries = [*dict.fromkeys(_STYLE.values()), ("waiting", "var(--wait)")]
    legend = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in entries)
    return _PAGE.format(title=escape(title), summary=summary, legend=legend, drawing=_drawing(step, shown, until))


def _shown(step: Step) -> tuple[list[Interval], float]:
    """The intervals to draw, and until when."""
    visible = [one for one in step.intervals if one.seconds > 0]
    if len(visible) <= _MOST:
        return visible, step.seconds
    return visible[:_MOST], visible[_MOST - 1].end


def _drawing(step: Step, shown: list[Interval], until: float) -> str:
    rows = step.replicas * step.stages
    height = _TOP + rows * (_ROW + _GAP)
    scale = (_WIDTH - _LEFT) / (until or 1.0)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="timeline of a step">']
    for tick in range(_TICKS + 1):
        x, label = _LEFT + tick / _TICKS * (_WIDTH - _LEFT), f"{until * tick / _TICKS:.3g} s"
        anchor = "end" if tick == _TICKS else "middle"
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="14" text-anchor="{anchor}">{label}</text>')
    for row in range(rows):
        replica, stage = divmod(row, step.stages)
        name = f"stage {stage}" if step.replicas == 1 else f"rank {replica}, stage {stage}"
        y = _TOP + row * (_ROW + _GAP)
        parts.append(f'<text x="0" y="{y + 17}">{name}</text>')
        parts.append(f'<rect class="wait" x="{_LEFT}" y="{y}" width="{_WIDTH - _LEFT}" height="{_ROW}"/>')
    parts += [_rectangle(one, step.stages, scale) for one in shown]
    return "\n".join([*parts, "</svg>"])


def _rectangle(one: Interval, stages: int, scale: float) -> str:
    name, colour = _STYLE[one.kind]
    x, y = _LEFT + one.begin * scale, _TOP + (one.replica * stages + one.stage) * (_ROW + _GAP)
    width = max(one.seconds * scale, 0.3)
    of = "" if one.micro_batch is None else f" of micro-batch {one.micro_batch}"
    told = f"{one.kind}{of}: {one.begin:.6g} to {one.end:.6g} s"
    drawn = (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW}" fill="{colour}"><title>{told}</title></rect>'
    )
    if one.micro_batch is not None and name in ("forward", "backward") and width > 14:
        drawn += f'<text class="n" x="{x + width / 2:.2f}" y="{y + 17}">{one.micro_batch}</text>'
    return drawn
