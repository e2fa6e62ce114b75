"""Curves as SVG figures: no network, in the colours of the page.

They are whole without scripts; report.js adds values under the pointer, and tokens or time in place of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launch.report.templates import render

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 10, 36  # room for the longest labels
_EDGE = 30  # labels this close to the edge are written inwards
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
        faint: draw it pale, without a place in the legend.
        run: number of the run on the page, whose tokens and time the steps have.
        counts: the points that decide how high the figure is; None: all.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    marks: bool = False
    faint: bool = False
    run: int = 0
    counts: Sequence[Point] | None = None


@dataclass(frozen=True)
class Below:
    """The x axis.

    Attributes:
        name: what it shows; steps begin at zero.
        marks: positions and texts of its labels; if empty, round numbers.
        last: the least step at which the axis ends, so that all charts of a run have the same axis.
    """

    name: str = "step"
    marks: Sequence[tuple[float, str]] = ()
    last: float = 0.0

    @property
    def is_steps(self) -> bool:
        return self.name == "step"


def chart(
    title: str,
    curves: Sequence[Curve],
    unit: str,
    lines: Sequence[tuple[float, str]] = (),
    below: Below = Below(),
    run: int | None = None,
) -> Markup:
    """A figure of the curves over steps, or over the axis `below`; empty if no curve has a point.

    Args:
        title: above the figure.
        curves: points that are not finite are left out.
        unit: of y.
        lines: vertical lines at a step, with what happened there.
        below: the x axis.
        run: number of the run on the page, if all curves are of one.
    """
    shown = [(curve, _thinned([p for p in curve.points if math.isfinite(p[1])])) for curve in curves]
    shown = [(curve, points) for curve, points in shown if points]
    if not shown:
        return Markup()
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for curve, points in shown for _, y in (points if curve.counts is None else curve.counts)]
    x_range = (0.0, max(*xs, below.last, 1.0)) if below.is_steps else _span(xs, 0.0)
    place = _Place(x_range, _span([y for y in ys if math.isfinite(y)] or [0.0], 0.06))
    marks = below.marks or _marked(*place.x_range, 7, 1 if below.is_steps else 0)
    return render(
        "chart.html.jinja",
        title=title,
        unit=unit,
        below=below.name,
        is_steps=below.is_steps,
        last=x_range[1],
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        rows=[(place.y(value), text) for value, text in _marked(*place.y_range, 5)],
        columns=[(place.x(value), text, _anchor(place.x(value))) for value, text in marks if place.shows(value)],
        lines=[(place.x(step), step, f"step {step:g}: {what}") for step, what in lines if place.shows(step)],
        curves=[_drawn(place, curve, points, unit, below, run) for curve, points in shown],
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


def _drawn(
    place: _Place, curve: Curve, points: Sequence[Point], unit: str, below: Below, run: int | None
) -> dict[str, Any]:
    """A curve as the template draws it: a path, and dots with their tooltips."""
    path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points) if len(points) > 1 else ""
    dots = [
        (place.x(x), place.y(y), f"{curve.name}, {below.name} {x:g}: {y:.4g} {unit}")
        for x, y in (points if curve.marks or len(points) == 1 else ())
    ]
    return {
        "name": curve.name,
        "colour": curve.colour,
        "faint": curve.faint,
        "run": curve.run if run is None else run,
        "path": path,
        "dots": dots,
        "x": " ".join(f"{x:g}" for x, _ in points),
        "y": " ".join(f"{y:.5g}" for _, y in points),
    }


def _anchor(x: float) -> str:
    return "end" if x > _WIDTH - _EDGE else "middle"


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of an axis; never empty."""
    low, high = min(values), max(values)
    if low == high == 0:  # a share or a count is never below zero
        return 0.0, 1.0
    room = (high - low) * margin or (abs(high) * 0.05 or 0.5 if high == low else 0.0)
    return low - room, high + room


def _marked(low: float, high: float, about: int, least: int = 0) -> list[tuple[float, str]]:
    """Round numbers within the range, at least `least` apart, with enough digits to tell them apart."""
    rough = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    values = [number * step + 0.0 for number in range(first, math.floor(high / step + 1e-9) + 1)]
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    if 0.001 <= max(abs(low), abs(high)) < 1000:
        return [(value, f"{value:.{digits}f}") for value in values]
    texts = [short(value) for value in values]
    if len(set(texts)) < len(texts):
        texts = [f"{value:,.{min(digits, 12)}f}" for value in values]
    return list(zip(values, texts, strict=True))


def short(value: float) -> str:
    """A number as shown on axes: 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-12 else "0"


def _thinned(points: list[Point]) -> list[Point]:
    """At most about `_MOST_POINTS` points: the lowest and highest of each stretch, in order."""
    if len(points) <= _MOST_POINTS:
        return points
    kept: list[Point] = []
    size = len(points) * 2 / _MOST_POINTS
    for number in range(_MOST_POINTS // 2):
        stretch = points[int(number * size) : int((number + 1) * size)]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
