"""The plot of a table: bits of each row, and its difference from the reference row beside the paper's."""

from pathlib import Path

from launch.reproduce.results import Results
from launch.views.figure import save_figure

_OURS, _PAPER = "#1f5fa8", "#c2571a"


def plot(path: Path, found: Results) -> None:
    """Draw a PNG; bars are standard deviations over seeds, and figures of the paper without a source are hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = found.rows
    height = 1.6 + 0.42 * len(rows)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, height), dpi=120, layout="constrained", sharey=True, width_ratios=(1, 1)
    )
    for place, row in enumerate(rows):
        if row.carried is not None and row.cleared is not None:
            left.errorbar(row.carried, place, xerr=row.spread, fmt="o", color=_OURS, capsize=3)
            left.plot(row.cleared, place, "o", color=_OURS, markerfacecolor="white")
        if row.difference is not None:
            right.errorbar(row.difference, place, xerr=row.difference_spread, fmt="o", color=_OURS, capsize=3)
        if row.paper_difference is not None:
            filled = "white" if row.sureness == "unverified" else _PAPER
            right.plot(row.paper_difference, place, "D", color=_PAPER, markerfacecolor=filled)
    left.plot([], [], "o", color=_OURS, label="memory carried")
    left.plot([], [], "o", color=_OURS, markerfacecolor="white", label="cleared")
    right.plot([], [], "o", color=_OURS, label="here")
    right.plot([], [], "D", color=_PAPER, label="paper")
    right.plot([], [], "D", color=_PAPER, markerfacecolor="white", label="paper, unverified")
    right.axvline(0.0, color="#888888", linewidth=1)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.invert_yaxis()
    left.set_xlabel(f"bits per {found.unit}, held-out documents")
    right.set_xlabel(f"difference from {found.reference}, bits per {found.unit}")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.suptitle(found.title, x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)
