"""Plots of a run, from its events."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brt_dist.events import EvaluationEvent
from brt_dist.run_directory import RunDirectory
from launch.run.history import History
from launch.views.figure import save_figure
from launch.views.smoothing import RAW_ALONE, settled, smooth

# One colour for training data, one for held-out data; cleared memory has the same colour, hollow.
_COLOURS = {"train": "#1f5fa8", "validation": "#c2571a"}


def plot_loss(run: Path, title: str = "", warmup: int = 0) -> Path | None:
    """Draw RUN/plots/loss.png: bits/token over steps, with evaluations.  Returns None if there is nothing to draw.

    Args:
        run: the run directory.
        title: above the plot.
        warmup: first steps whose loss is ignored in scaling the plot.
    """
    history = History.read(run)
    bits_of = {step: event.bits_per_token for step, event in history.steps.items() if event.bits_per_token is not None}
    if not bits_of:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    order = sorted(bits_of)
    bits = [bits_of[step] for step in order]
    if len(order) > RAW_ALONE:
        axes.plot(order, bits, color=_COLOURS["train"], alpha=0.25, linewidth=0.8)
        axes.plot(order, smooth(bits), color=_COLOURS["train"], linewidth=1.6, label="training (smoothed)")
    else:
        axes.plot(order, bits, color=_COLOURS["train"], linewidth=1.6, label="training")
    _mark_evaluations(axes, history.evaluations)
    axes.set_xlim(0, order[-1] * 1.015)  # room for the last mark
    axes.set_ylim(*_heights(list(zip(order, bits, strict=True)), history, warmup))
    axes.set_xlabel("step")
    axes.set_ylabel("bits per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.legend(frameon=False)
    path = RunDirectory(run).loss_plot
    save_figure(figure, path)
    return path


def _heights(points: list[tuple[float, float]], history: History, warmup: int) -> tuple[float, float]:
    """Lowest and highest value to show, with some room."""
    values = [bits for _, bits in settled(points, warmup)]
    values += [
        event.bits_per_token
        for (step, *_), event in history.evaluations.items()
        if event.bits_per_token is not None and step > warmup
    ]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _mark_evaluations(axes: Any, evaluations: Mapping[tuple[int, str, str], EvaluationEvent]) -> None:
    kinds = {(dataset, memory) for _, dataset, memory in evaluations if memory in ("carried", "cleared")}
    for dataset, memory in sorted(kinds):
        found = [(step, event) for (step, *kind), event in sorted(evaluations.items()) if kind == [dataset, memory]]
        points = [(step, event.bits_per_token) for step, event in found if event.bits_per_token is not None]
        colour = _COLOURS.get(dataset, "#555555")
        axes.plot(
            [step for step, _ in points],
            [bits for _, bits in points],
            linestyle=":",
            linewidth=1,
            marker="o",
            markersize=6,
            color=colour,
            markerfacecolor=colour if memory == "carried" else "white",
            label=f"evaluation: {dataset}, memory {memory}",
        )
