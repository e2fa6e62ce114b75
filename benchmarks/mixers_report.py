"""Table and plot of the results of `benchmarks.mixers`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from brt_dist.files import atomic_file

Cell = dict[str, Any]


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each kind; means over seeds, and where there are several seeds their range in brackets."""
    tasks = sorted(dict.fromkeys(cell["task"] for cell in cells), key=lambda task: task.startswith(("text", "time")))
    columns: list[tuple[str, str, Callable[[Cell], float], str]] = []
    for task in tasks:
        if task == "time":
            columns.append(("bytes/s, training", task, lambda cell: cell["bytes_per_second"], ".0f"))
            continue
        if not task.startswith("text"):
            columns.append((task, task, lambda cell: cell["accuracy"], ".2f"))
            continue
        columns += [
            (f"{task}, bits/byte", task, lambda cell: cell["bits_per_token"], ".3f"),
            ("carried kB/stream", task, lambda cell: cell["memory_bytes"] / 1000, ".1f"),
            ("peak MB of the process", task, lambda cell: cell["peak_bytes"] / 1e6, ".0f"),
            ("parameters", task, lambda cell: cell["parameters"], ".0f"),
            ("width of the FFN", task, lambda cell: cell["mlp_width"], ".0f"),
        ]
    rows = [["kind", *(title for title, *_ in columns)]]
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        of_kind = [cell for cell in cells if cell["kind"] == kind]
        values = [([get(cell) for cell in of_kind if cell["task"] == task], form) for _, task, get, form in columns]
        rows.append([kind, *(_shown(found, form) for found, form in values)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _shown(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, least, most = (format(value, form) for value in (fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Left, accuracy on the tasks, each seed a point; right, bits per byte of text by position, means over seeds.

    Without text there is only the left.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), dpi=110, layout="constrained")
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells))
    tasks = [task for task in dict.fromkeys(cell["task"] for cell in cells) if not task.startswith(("text", "time"))]
    for number, task in enumerate(tasks):
        found = [cell for cell in cells if cell["task"] == task]
        rows = [kinds.index(cell["kind"]) + 0.2 * (number - (len(tasks) - 1) / 2) for cell in found]
        left.plot([cell["accuracy"] for cell in found], rows, "o", alpha=0.7, label=task)
    left.axvline(1 / 8, color="#777777", linestyle=":", label="chance")
    left.set_yticks(range(len(kinds)), kinds)
    left.set_ylim(len(kinds) - 0.5, -0.5)
    left.set_xlim(0, 1.02)
    left.set_xlabel("right answers, each seed a point")
    colours = pyplot.get_cmap("tab20")
    for number, kind in enumerate(kinds):
        found = [cell for cell in cells if cell["kind"] == kind and cell["task"].startswith("text")]
        if found:
            bits = [fmean(values) for values in zip(*(cell["by_position"] for cell in found), strict=True)]
            right.plot(range(len(bits)), bits, marker=".", color=colours(number % 20), label=kind)
            right.set_xticks(range(len(bits)), [str(edge) for edge in found[0]["edges"]], rotation=45)
    right.set_xlabel("bytes into the document, from")
    right.set_ylabel("bits per byte of held-out text")
    if not right.has_data():
        right.remove()
        figure.set_size_inches(7, 5)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    # beside the panels, clear of points and lines
    left.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if right in figure.axes:
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
