"""Curves as SVG figures: no scripts, no network, in the colours of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launch.report.templates import render

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
_MOST_POINTS = 500  # longer curves are thinned out, keeping their extremes

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One curve of a figure.

    Attributes:
        name: for the legend.
        points: in order of x.
        colour: index into the page's colours.
        marks: draw a dot at each point.
        faint: draw it pale.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    marks: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Below:
    """The x axis.

    Attributes:
        name: what it shows.
        marks: positions and texts of its labels; empty: round numbers.
    """

    name: str = "step"
    marks: Sequence[tuple[float, str]] = ()


def chart(
    title: str,
    curves: Sequence[Curve],
    unit: str,
    lines: Sequence[tuple[float, str]] = (),
    below: Below = Below(),
) -> Markup:
    """A figure of the curves over the steps, or over what `below` says; empty if no curve has a point.

    Args:
        title: above the figure.
        curves: points that are not finite are left out.
        unit: of y.
        lines: vertical lines at a step, with what happened there.
        below: the x axis.
    """
    shown = [(curve, _thinned([p for p in curve.points if math.isfinite(p[1])])) for curve in curves]
    shown = [(curve, points) for curve, points in shown if points]
    if not shown:
        return Markup()
    xs, ys = ([point[axis] for _, points in shown for point in points] for axis in (0, 1))
    place = _Place(_span(xs, 0.0), _span(ys, 0.06))
    marks = below.marks or [(value, short(value)) for value in _ticks(*place.x_range, 7)]
    return render(
        "chart.html.jinja",
        title=title,
        unit=unit,
        below=below.name,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        rows=[(place.y(value), short(value)) for value in _ticks(*place.y_range, 5)],
        columns=[(place.x(value), text) for value, text in marks if place.shows(value)],
        lines=[(place.x(step), f"step {step:g}: {what}") for step, what in lines if place.shows(step)],
        curves=[_drawn(place, curve, points, unit, below) for curve, points in shown],
    )


@dataclass(frozen=True)
class _Place:
    """Maps values to coordinates of the figure."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def shows(self, x: float) -> bool:
        return self.x_range[0] <= x <= self.x_range[1]

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _drawn(place: _Place, curve: Curve, points: Sequence[Point], unit: str, below: Below) -> dict[str, Any]:
    """A curve as the template draws it: a path, and dots with their tooltips."""
    path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points) if len(points) > 1 else ""
    dots = [
        (place.x(x), place.y(y), f"{curve.name}, {below.name} {x:g}: {y:.4g} {unit}")
        for x, y in (points if curve.marks or len(points) == 1 else ())
    ]
    return {"name": curve.name, "colour": curve.colour, "faint": curve.faint, "path": path, "dots": dots}


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of an axis; never empty."""
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
    """At most about `_MOST_POINTS`: the lowest and highest of each stretch, in order."""
    if len(points) <= _MOST_POINTS:
        return points
    kept: list[Point] = []
    size = len(points) * 2 / _MOST_POINTS
    for number in range(_MOST_POINTS // 2):
        stretch = points[int(number * size) : int((number + 1) * size)]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
