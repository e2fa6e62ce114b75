"""Table and plot of the results of `benchmarks.books`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from brt_dist.files import atomic_file

Run = dict[str, Any]
_COLOURS = ("#c2571a", "#1f5fa8", "#2a7f4f", "#777777")


def kinds(runs: Sequence[Run]) -> list[str]:
    """In the order in which they were run."""
    return list(dict.fromkeys(run["kind"] for run in runs))


def mean_by_position(runs: Sequence[Run], kind: str) -> list[float]:
    """Bits per token in each bin, mean over the seeds of `kind`."""
    return [fmean(values) for values in zip(*(run["by_position"] for run in runs if run["kind"] == kind), strict=True)]


def table(edges: Sequence[int], runs: Sequence[Run]) -> str:
    """Markdown: a row per bin of position, a column per kind; means over seeds, each seed in brackets for the whole."""
    names = kinds(runs)
    columns = {kind: [run for run in runs if run["kind"] == kind] for kind in names}
    means = {kind: mean_by_position(runs, kind) for kind in names}
    rows = [["position (tokens)", "held-out tokens", *names]]
    for i, first in enumerate(edges):
        end = f"to {edges[i + 1] - 1}" if i + 1 < len(edges) else "and on"
        values = [f"{means[kind][i]:.3f}" for kind in names]
        rows.append([f"{first} {end}", f"{runs[0]['held_out_tokens'][i]:.0f}", *values])
    total = f"{sum(runs[0]['held_out_tokens']):.0f}"
    rows.append(["all", total, *(f"{fmean(run['bits_per_token'] for run in columns[kind]):.3f}" for kind in names)])
    for seed in dict.fromkeys(run["seed"] for run in runs):
        found = {run["kind"]: f"{run['bits_per_token']:.3f}" for run in runs if run["seed"] == seed}
        rows.append([f"all, seed {seed}", "", *(found.get(kind, "") for kind in names)])
    rows.append(["parameters", "", *(str(columns[kind][0]["parameters"]) for kind in names)])
    rows.append(["width of the MLP", "", *(str(columns[kind][0]["mlp_width"]) for kind in names)])
    rows.append(["training tokens", "", *(str(columns[kind][0]["training_tokens"]) for kind in names)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def draw(edges: Sequence[int], runs: Sequence[Run], path: Path) -> None:
    """Bits per token over position, relative to the first kind: above zero is worse than it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=110, layout="constrained")
    places = range(len(edges))
    base = kinds(runs)[0]
    for kind, colour in zip(kinds(runs), _COLOURS, strict=False):
        left.plot(places, mean_by_position(runs, kind), marker="o", color=colour, label=kind)
        for run in runs:
            reference = [r for r in runs if r["kind"] == base and r["seed"] == run["seed"]]
            if run["kind"] == kind and kind != base and reference:
                gap = [a - b for a, b in zip(run["by_position"], reference[0]["by_position"], strict=True)]
                right.plot(places, gap, marker="o", color=colour, alpha=0.7)
    right.axhline(0, color=_COLOURS[0], label=base)
    left.set_ylabel("bits per token of held-out books")
    right.set_ylabel(f"more than {base}, each seed a line")
    for axes in (left, right):
        axes.set_xticks(list(places), [str(edge) for edge in edges], rotation=45)
        axes.set_xlabel("tokens into the book, from")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
