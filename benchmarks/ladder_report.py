"""Table and plot of the results of `benchmarks.ladder`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.cells import Cell
from benchmarks.ladder_results import Figure, Row, behind, curves, rows
from benchmarks.ladder_rungs import KINDS, REFERENCE, RUNGS, learning_rate
from launch.views.figure import save_figure

_HEAD = (
    "rung", "model", "all", "far", "far gains", "seeds", "all, equal time", "far, equal time", "seeds", "steps",
    "steps, equal time", "time of a step", "learning rate", "parameters",
)  # fmt: skip
_COLOURS = dict(zip(KINDS, ("#c2571a", "#1f5fa8", "#2a7f4f", "#777777"), strict=True))


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each rung and kind; means over seeds, and where there are several their range."""
    lines = [_line(_HEAD), "|" + "---|" * len(_HEAD)]
    return "\n".join([*lines, *(_line(_shown(row)) for row in rows(cells))])


def tables(cells: Sequence[Cell]) -> str:
    """Markdown: both tables of the ladder."""
    return f"{table(cells)}\n\n{compared(cells)}"


def compared(cells: Sequence[Cell]) -> str:
    """Markdown: on texts, bits more than the reference's with the same seed; ± is the standard deviation over seeds."""
    lines = [_line(("rung", "model", "equal tokens", "equal time")), "|---|---|---|---|"]
    for row in rows([cell for cell in cells if not RUNGS[cell["rung"]].asks]):
        if row.kind == REFERENCE:
            reference = row
        else:
            more = (_more(behind(row, reference, in_time)) for in_time in (False, True))
            lines.append(_line((row.rung, row.kind, *more)))
    return "\n".join(lines)


def _more(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:+.3f} (1 seed)"
    return f"{fmean(values):+.3f} ± {stdev(values):.3f} ({len(values)} seeds, {sum(v > 0 for v in values)} behind)"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(row: Row) -> tuple[str, ...]:
    form = ".2f" if RUNGS[row.rung].asks else ".3f"
    in_time = row.every_in_time
    return (
        row.rung if row.kind == REFERENCE else "",
        row.kind,
        _figure(row.every, form),
        _figure(row.far, form),
        _figure(row.gain, "+.3f"),
        str(len(row.every.seeds)),
        _figure(in_time, form),
        _figure(row.far_in_time, form),
        str(len(in_time.seeds)) if in_time else "0",
        str(row.steps),
        "-" if row.steps_in_time is None else str(row.steps_in_time),
        "-" if row.seconds is None else f"{row.seconds:.2f}",
        f"{learning_rate(row.rate):g}{' (edge)' if row.at_edge else ''}",
        str(row.parameters),
    )


def _figure(figure: Figure | None, form: str) -> str:
    if figure is None:
        return "-"
    mean, least, most = (format(value, form) for value in (figure.mean, min(figure.seeds), max(figure.seeds)))
    return mean if least == most else f"{mean} ({least} to {most})"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A panel for each rung: right answers by distance, or bits by position beyond those of the reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rungs = [rung for rung in RUNGS if any(cell["rung"] == rung and "kind" in cell for cell in cells)]
    columns = min(4, len(rungs))
    lines = -(-len(rungs) // columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(3.6 * columns, 3.2 * lines + 0.4), dpi=110, layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(rungs) :]:
        axes.set_visible(False)
    for rung, axes in zip(rungs, panels.flat, strict=False):
        found, asks = curves(cells, rung), RUNGS[rung].asks
        base = {edge: 0.0 if asks else value for edge, value in found[REFERENCE]}
        places = list(base)
        for kind, curve in found.items():
            shown = [(places.index(edge), value - base[edge]) for edge, value in curve if edge in base]
            axes.plot(*zip(*shown, strict=True), marker=".", color=_COLOURS[kind], label=kind)
        axes.set_xticks(range(len(places)), [str(edge) for edge in places], rotation=45, fontsize=8)
        axes.set_title(rung, fontsize=10)
        axes.set_xlabel("windows since it was shown, from" if asks else "tokens into the document, from", fontsize=8)
        axes.set_ylabel("right answers" if asks else f"bits more than {REFERENCE}", fontsize=8)
        if asks:
            axes.axhline(RUNGS[rung].chance or 0.0, color="#777777", linestyle=":", label="chance")
            axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels.flat[0].legend(frameon=False, fontsize=7)
    save_figure(figure, path)
