"""Plot of the results of `benchmarks.crossing`: who is ahead of the sliding window, by budget and by position."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.crossing_report import POSITIONS, Cell, between, differences, groups, same, settings
from launch.views.figure import save_figure

_SHOWN = {"recurrent, sharp": "recurrent", "sliding window x2, sharp": "window x2"}
_BASE = "sliding window, sharp"
_COLOURS = {"recurrent, sharp": "#c2571a", "sliding window x2, sharp": "#2a7f4f"}
_MARKS = ("o", "s", "^", "D", "v")


def draw(cells: Sequence[Cell], path: Path, window: int = 16, shape: str = "32 x 128") -> None:
    """Draw bits per byte more than the sliding window of the same seed; below zero is better than it.

    Args:
        cells: results.
        path: of the PNG.
        window: of the reference.
        shape: streams and bytes of a segment; of other shapes nothing is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    here = [group for group in groups(cells) if group["window"] == window and settings(group["set"])[0] == shape]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=110, layout="constrained")
    for kind, name in _SHOWN.items():
        for mark, rate in zip(_MARKS, dict.fromkeys(settings(group["set"])[1] for group in here), strict=False):
            points = []
            for group in (group for group in here if settings(group["set"])[1] == rate):
                found = same(cells, kind=kind, **group)
                values = [more for more, _ in differences(cells, found)]
                if len(values) >= 3:
                    points.append((fmean(c["bytes"] for c in found) / 1e6, fmean(values), stdev(values)))
            if points:
                budget, mean, spread = zip(*points, strict=True)
                style = {"color": _COLOURS[kind], "marker": mark, "capsize": 3}
                left.errorbar(budget, mean, spread, label=f"{name}, rate {rate}", **style)
    last = max(
        (g for g in here if all(len(same(cells, kind=kind, **g)) >= 3 for kind in (_BASE, *_SHOWN))),
        key=lambda group: group["steps"],
        default=None,
    )
    right.set_visible(last is not None)
    base = {cell["seed"]: cell for cell in same(cells, kind=_BASE, **last)} if last else {}
    ends = [*POSITIONS[1:], None]
    for kind, name in _SHOWN.items():
        for cell in same(cells, kind=kind, **last) if last else ():
            gap = [
                between(cell, begin, end) - between(base[cell["seed"]], begin, end)
                for begin, end in zip(POSITIONS, ends, strict=True)
            ]
            label = name if cell["seed"] == min(base) else None
            right.plot(range(len(gap)), gap, color=_COLOURS[kind], marker="o", alpha=0.7, label=label)
    left.set_xscale("log", base=2)
    budgets = sorted({round(cell["bytes"] / 1e6, 1) for group in here for cell in same(cells, **group)})
    left.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    left.set_xlabel("million bytes of training")
    left.set_ylabel("bits/byte more than the sliding window")
    right.set_xticks(range(len(POSITIONS)), [f"{begin:,}" for begin in POSITIONS])
    right.set_xlabel("bytes into the document, from")
    if last:
        budget, rate = base[min(base)]["bytes"] / 1e6, settings(last["set"])[1]
        right.set_title(f"after {budget:.1f} million bytes, rate {rate}; each seed a line", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color="#777777", linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    save_figure(figure, path)
