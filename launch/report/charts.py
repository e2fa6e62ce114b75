"""Curves as SVG text: no script, no network, in the colours of the page around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
_MOST_POINTS = 500  # a curve with more is thinned out: its extremes stay

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """name: for the legend.  points: by x.  colour: number of one of the page's.  marks: a dot at each point."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    marks: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Below:
    """The axis of x.  name: what it is.  marks: where it is labelled, and how; none: round numbers."""

    name: str = "step"
    marks: Sequence[tuple[float, str]] = ()


def chart(
    title: str,
    curves: Sequence[Curve],
    unit: str,
    lines: Sequence[tuple[float, str]] = (),
    below: Below = Below(),
) -> str:
    """A figure of all curves over the steps, or what `below` says; empty text when no curve has a point.

    unit: of y.  lines: upright ones at a step, with what happened there.
    """
    shown = [(curve, _thinned([p for p in curve.points if math.isfinite(p[1])])) for curve in curves]
    shown = [(curve, points) for curve, points in shown if points]
    if not shown:
        return ""
    xs, ys = ([point[axis] for _, points in shown for point in points] for axis in (0, 1))
    place = _Place(_span(xs, 0.0), _span(ys, 0.06))
    parts = [*_axes(place, unit, below)]
    for step, what in lines:
        if place.x_range[0] <= step <= place.x_range[1]:
            x = place.x(step)
            parts.append(
                f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
                f"<title>step {step:g}: {escape(what)}</title></line>"
            )
    for curve, points in shown:
        parts += _curve(place, curve, points, unit, below)
    legend = "".join(f'<span class="c{curve.colour}">{escape(curve.name)}</span>' for curve, _ in shown)
    return (
        f'<figure><figcaption>{escape(title)}<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


@dataclass(frozen=True)
class _Place:
    """From values to the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _curve(place: _Place, curve: Curve, points: Sequence[Point], unit: str, below: Below) -> list[str]:
    path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points)
    faint = " faint" if curve.faint else ""
    parts = [f'<polyline class="c{curve.colour}{faint}" points="{path}"/>'] if len(points) > 1 else []
    if curve.marks or len(points) == 1:
        parts += [
            f'<circle class="c{curve.colour}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="3.5">'
            f"<title>{escape(curve.name)}, {escape(below.name)} {x:g}: {y:.4g} {escape(unit)}</title></circle>"
            for x, y in points
        ]
    return parts


def _axes(place: _Place, unit: str, below: Below) -> list[str]:
    bottom, parts = _HEIGHT - _BOTTOM, []
    for value in _ticks(*place.y_range, 5):
        y = place.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value, text in below.marks or [(value, short(value)) for value in _ticks(*place.x_range, 7)]:
        if place.x_range[0] <= value <= place.x_range[1]:
            x = place.x(value)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="unit" x="{_WIDTH - _RIGHT}" y="{bottom + 30}" text-anchor="end">{escape(below.name)}</text>'
    )
    parts.append(f'<text class="unit" x="{_LEFT + 6}" y="{_TOP + 8}">{escape(unit)}</text>')
    return parts


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of an axis; never of no width."""
    low, high = min(values), max(values)
    room = (high - low) * margin or (abs(high) * 0.05 or 0.5 if high == low else 0.0)
    return low - room, high + room


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within the range."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as axes show it: 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-12 else "0"


def _thinned(points: list[Point]) -> list[Point]:
    """At most about `_MOST_POINTS`: of each stretch the lowest and the highest, in order."""
    if len(points) <= _MOST_POINTS:
        return points
    kept: list[Point] = []
    size = len(points) * 2 / _MOST_POINTS
    for number in range(_MOST_POINTS // 2):
        stretch = points[int(number * size) : int((number + 1) * size)]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
