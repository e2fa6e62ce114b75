"""The runs of a sweep side by side: a table, and parallel coordinates of their settings and results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launch.report.charts import short
from launch.report.tables import ReportTable
from launch.report.templates import render

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 1240, 300, 34, 20, 90
_LOG_FROM = 8.0  # from this ratio of highest to lowest on, the axis is logarithmic


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep: its name and settings, how it ended, its loss in nats and held-out bits per token."""

    name: str
    settings: Mapping[str, str]
    verdict: str
    step: int
    loss: float | None
    bits_per_token: float | None


@dataclass(frozen=True)
class Swept:
    """A sweep; `best` is the name of its best run."""

    title: str
    runs: Sequence[SweptRun]
    best: str | None

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for run in self.runs for key in run.settings))

    def ranked(self) -> list[SweptRun]:
        """The best run first; runs without a result last."""
        return sorted(self.runs, key=lambda run: (run.bits_per_token is None, run.bits_per_token or 0.0, run.name))


def sweep_table(sweep: Swept) -> ReportTable:
    rows = [
        (
            *(run.settings.get(key, "-") for key in sweep.keys),
            run.verdict,
            f"{run.step:,}",
            "-" if run.loss is None else f"{run.loss:.4f}",
            ("-" if run.bits_per_token is None else f"{run.bits_per_token:.4f}")
            + (" (best)" if run.name == sweep.best else ""),
        )
        for run in sweep.ranked()
    ]
    return ReportTable("Results", (*sweep.keys, "verdict", "step", "training loss (nats)", "held-out bits/token"), rows)


def parallel(sweep: Swept) -> Markup:
    """An axis for each key and one for the result, and a line for each run that has one; empty for fewer than two."""
    runs = [run for run in sweep.ranked() if run.bits_per_token is not None]
    if len(runs) < 2:
        return Markup()
    keys = sweep.keys
    axes = [_Axis(key, [run.settings.get(key, "-") for run in runs]) for key in keys]
    axes.append(_Axis("held-out bits/token", [f"{run.bits_per_token:.4f}" for run in runs]))
    gap = (_WIDTH - 2 * _SIDE) / (len(axes) - 1)
    lines = []
    for number, run in enumerate(runs):
        points = " ".join(f"{_SIDE + gap * at:.1f},{axis.places[number]:.1f}" for at, axis in enumerate(axes))
        said = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in run.settings.items())
        lines.append((points, run.name == sweep.best, f"{said}: {run.bits_per_token:.4f} bits/token"))
    drawn = [
        (_SIDE + gap * at, axis.name, axis.marks, "start" if at == 0 else "end" if at == len(axes) - 1 else "middle")
        for at, axis in enumerate(axes)
    ]
    size: dict[str, Any] = {"width": _WIDTH, "height": _HEIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM}
    return render("parallel.html.jinja", axes=drawn, lines=sorted(lines, key=lambda line: line[1]), **size)


class _Axis:
    """Positions of an axis's values, and its labels; numbers by size, the rest in the order of first use."""

    def __init__(self, key: str, values: Sequence[str]) -> None:
        self.name = key.rpartition(".")[2]
        numbers = [_number(value) for value in values]
        known = [number for number in numbers if number is not None]
        if len(known) == len(values):
            scale = math.log if min(known) > 0 and max(known) / min(known) >= _LOG_FROM else float
            low, high = scale(min(known)), scale(max(known))
            self.places = [_height((scale(number) - low) / (high - low) if high > low else 0.5) for number in known]
            names = [short(number) for number in known]
        else:
            kinds = list(dict.fromkeys(values))
            steps = max(len(kinds) - 1, 1)
            self.places = [_height(kinds.index(value) / steps if len(kinds) > 1 else 0.5) for value in values]
            names = list(values)
        self.marks = self._apart(sorted(set(zip(self.places, names, strict=True))))

    @staticmethod
    def _apart(marks: list[tuple[float, str]]) -> list[tuple[float, str]]:
        """Drop labels that would overlap; the first and the last are kept."""
        kept = marks[:1]
        for place, name in marks[1:-1]:
            if place - kept[-1][0] >= 15 and marks[-1][0] - place >= 15:
                kept.append((place, name))
        return kept + (marks[-1:] if len(marks) > 1 else [])


def _height(share: float) -> float:
    return _HEIGHT - _BOTTOM - 8 - share * (_HEIGHT - _TOP - _BOTTOM - 16)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
