"""Plots of a simulation: strong and weak scaling, and the goodput by the number of GPUs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brt_dist.planning.scaling import Kept, Point
from launch.views.figure import save_figure

_COLOURS = {"strong": "#1f5fa8", "weak": "#c2571a"}
_SHARES = (
    ("trained", "#1f5fa8"),
    ("saving", "#8a6d00"),
    ("lost", "#c2571a"),
    ("restarting", "#7a3fa0"),
)


def plot_simulation(path: Path, curves: Mapping[str, Sequence[Point]], kept: Sequence[Kept], title: str) -> None:
    """Draw a PNG with three parts: throughput, efficiency of a GPU, and where the time of a run goes.

    Args:
        path: of the file.
        curves: "strong" and "weak" scaling.
        kept: goodput by GPUs.
        title: above it.

    Raises:
        PlatformError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for name, points in curves.items():
        gpus = [point.gpus for point in points]
        style = {"color": _COLOURS[name], "marker": "o", "markersize": 4, "linewidth": 1.6}
        left.plot(gpus, [point.tokens_per_second for point in points], label=f"{name} scaling", **style)
        middle.plot(gpus, [100 * point.mfu for point in points], label=f"{name} scaling", **style)
    ideal = next((points for points in curves.values() if points), [])
    if ideal:
        rate = ideal[0].tokens_per_second / ideal[0].gpus
        sizes = sorted({point.gpus for points in curves.values() for point in points})
        left.plot(sizes, [rate * size for size in sizes], color="#888888", linestyle=":", label="linear")
    left.set_ylabel("tokens per second")
    left.set_yscale("log")
    middle.set_ylabel("MFU (%)")
    middle.set_ylim(bottom=0)
    _goodput(right, kept)
    for axes in (left, middle, right):
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    for axes in (left, middle):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.tick_params(axis="x", rotation=45)
    save_figure(figure, path)


def _goodput(axes: Any, kept: Sequence[Kept]) -> None:
    """What does not train, stacked by the number of GPUs."""
    places = range(len(kept))
    below = [0.0] * len(kept)
    for name, colour in _SHARES[1:]:
        heights = [100 * getattr(one.goodput, name) for one in kept]
        axes.bar(places, heights, bottom=below, color=colour, label=name, width=0.7)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, one, top in zip(places, kept, below, strict=True):
        axes.text(place, top, f"{one.goodput.trained:.1%}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(list(places), [f"{one.gpus:,}" for one in kept], rotation=45)
    axes.set_ylabel("time that does not train (%); above: goodput")
