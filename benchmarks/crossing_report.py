"""Tables of the results of `benchmarks.crossing`."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Cell = dict[str, Any]
# What each kind is set against: the sliding window whose attention starts as sharp as its own.
BASE = {
    "recurrent": "sliding window",
    "recurrent, sharp states": "sliding window",
    "recurrent, sharp": "sliding window, sharp",
    "sliding window x2, sharp": "sliding window, sharp",
    "XL, window x2": "sliding window",
    "XL, window x2, sharp": "sliding window, sharp",
}

_DEFAULTS = {"data.streams": "16", "data.segment": "256", "optimizer.learning_rate": "0.003"}  # of crossing.yaml
_HEAD = ("streams x bytes", "learning rate")
POSITIONS = (128, 1024, 8192)  # bytes into the document, where each span begins


def same(cells: Sequence[Cell], **key: Any) -> list[Cell]:
    return [cell for cell in cells if key.items() <= cell.items()]


def _group(cell: Cell) -> dict[str, Any]:
    return {key: cell[key] for key in ("window", "set", "steps")}


def groups(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Windows, settings and budgets of the cells, sorted."""

    def order(key: tuple[int, tuple[str, ...], int]) -> tuple[Any, ...]:
        window, given, steps = key
        (shape, *_), rate = settings(given)[0].split(","), float(settings(given)[1])
        return window, int(shape.split()[0]), rate, steps, given

    keys = sorted({(cell["window"], tuple(cell["set"]), cell["steps"]) for cell in cells}, key=order)
    return [{"window": window, "set": list(settings), "steps": steps} for window, settings, steps in keys]


def settings(given: Sequence[str]) -> list[str]:
    """What a row was trained with: streams and segment, learning rate; of the rest only what is not the default."""
    values = _DEFAULTS | dict(setting.split("=", 1) for setting in given)
    heads = f", {values['model.heads']} head of {values['model.head_dim']}" if "model.heads" in values else ""
    told = {*_DEFAULTS, "parallel.micro_batch", "model.heads", "model.head_dim"}
    others = "".join(f", {key}={value}" for key, value in values.items() if key not in told)
    return [f"{values['data.streams']} x {values['data.segment']}{heads}{others}", values["optimizer.learning_rate"]]


def differences(cells: Sequence[Cell], found: Sequence[Cell]) -> list[tuple[float, float]]:
    """Bits per byte more than the base of the same seed and budget, and the standard error over documents."""
    return [
        (cell["carried"] - base["carried"], over_documents(cell, base))
        for cell in found
        for base in same(cells, kind=BASE.get(cell["kind"]), seed=cell["seed"], **_group(cell))
    ]


def over_documents(cell: Cell, base: Cell) -> float:
    """Standard error, over documents, of the difference of two models on the same documents (ratio estimator)."""
    more = [a - b for a, b in zip(cell["document_bits"], base["document_bits"], strict=True)]
    sizes, count = cell["document_bytes"], len(more)
    mean = sum(more) / sum(sizes)
    residuals = [bits - mean * size for bits, size in zip(more, sizes, strict=True)]
    return math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / sum(sizes)


def table(cells: Sequence[Cell]) -> str:
    """Markdown: bits per byte of each kind at each budget; in brackets, more than the sliding window.

    With ± the standard deviation over seeds; of one seed, the standard error over documents.
    """
    names = list(dict.fromkeys(cell["kind"] for cell in cells))
    rows = [["window", *_HEAD, "million bytes", *names]]
    for group in groups(cells):
        here = [same(cells, kind=kind, **group) for kind in names]
        budget = min(cell["bytes"] for found in here for cell in found) / 1e6
        row = [str(group["window"]), *settings(group["set"]), f"{budget:.1f}"]
        rows.append([*row, *(_bits(found, differences(cells, found)) for found in here)])
    return _markdown(rows)


def tables(cells: Sequence[Cell]) -> str:
    """Markdown: all tables of the comparison."""
    return "\n\n".join((table(cells), worth(cells), adaptation(cells)))


def worth(cells: Sequence[Cell]) -> str:
    """Markdown: what the carried state and cache are worth to models with a state, and how the state looks."""
    rows = [
        [
            "kind",
            "window",
            *_HEAD,
            "million bytes",
            "worth of the state",
            "of the cache",
            "`state_rank`",
            "`from_states`",
        ]
    ]
    for group in groups(cells):
        for kind in dict.fromkeys(cell["kind"] for cell in cells if "state cleared" in cell):
            found = same(cells, kind=kind, **group)
            if found:
                looks = [layer for cell in found for layer in cell["layers"].values() if "state_rank" in layer]
                parts = [fmean(c[f"{part} cleared"] - c["carried"] for c in found) for part in ("state", "cache")]
                rows.append([
                    kind, str(group["window"]), *settings(group["set"]), f"{found[0]['bytes'] / 1e6:.1f}",
                    *(f"{part:.4f}" for part in parts),
                    f"{fmean(layer['state_rank'] for layer in looks):.2f}",
                    f"{fmean(layer['from_states'] for layer in looks):.2f}",
                ])  # fmt: skip
    return _markdown(rows)


def adaptation(cells: Sequence[Cell]) -> str:
    """Markdown: bits per byte by position in the document, where all kinds were trained with at least three seeds."""
    ends = [*POSITIONS[1:], None]
    spans = [
        f"{begin:,} to {end - 1:,}" if end else f"{begin:,} and on" for begin, end in zip(POSITIONS, ends, strict=True)
    ]
    rows = [[*_HEAD, "million bytes", "kind", *spans, "gain"]]
    for group in groups(cells):
        here = {kind: same(cells, kind=kind, **group) for kind in dict.fromkeys(cell["kind"] for cell in cells)}
        here = {kind: found for kind, found in here.items() if found}
        if len(here) < 2 or any(len(found) < 3 for found in here.values()):
            continue
        for kind, found in here.items():
            bits = [
                fmean(between(cell, begin, end) for cell in found) for begin, end in zip(POSITIONS, ends, strict=True)
            ]
            budget = f"{found[0]['bytes'] / 1e6:.1f}"
            numbers = [f"{value:.3f}" for value in (*bits, bits[0] - bits[-1])]
            rows.append([*settings(group["set"]), budget, kind, *numbers])
    return _markdown(rows)


def changes(cells: Sequence[Cell], base: Sequence[str], steps: int) -> str:
    """Markdown: what single changes do to the sharp recurrent model of the settings `base`, at `steps`.

    Bits of a change are set against those of the base with the same seed.
    """
    found = same(cells, kind="recurrent, sharp", steps=steps)
    plain = {cell["seed"]: cell for cell in found if cell["set"] == list(base)}
    changed = dict[str, list[Cell]]()
    for cell in found:
        if len(cell["set"]) >= len(base) and cell["set"][: len(base)] == list(base):
            changed.setdefault(" ".join(cell["set"][len(base) :]) or "none", []).append(cell)
    rows = [["change", "parameters", "bits/byte more", "worth of the state", "`state_rank`", "`kept`"]]
    for change, here in changed.items():
        more = [
            (cell["carried"] - plain[cell["seed"]]["carried"], over_documents(cell, plain[cell["seed"]]))
            for cell in here
        ]
        looks = [layer for cell in here for layer in cell["layers"].values() if "state_rank" in layer]
        rows.append([
            f"`{change}`" if "=" in change else change,
            f"{here[0]['parameters']:,}",
            _spread(more) if change != "none" else "",
            f"{fmean(cell['state cleared'] - cell['carried'] for cell in here):.3f}",
            f"{fmean(layer['state_rank'] for layer in looks):.2f}",
            f"{fmean(layer['kept'] for layer in looks):.2f}",
        ])  # fmt: skip
    return _markdown(rows)


def between(cell: Cell, begin: int, end: int | None) -> float:
    found = [(count, bits) for at, count, bits in cell["positions"] if begin <= at and (end is None or at < end)]
    return sum(count * bits for count, bits in found) / sum(count for count, _ in found)


def _bits(found: Sequence[Cell], more: Sequence[tuple[float, float]]) -> str:
    if not found:
        return "-"
    text = f"{fmean(cell['carried'] for cell in found):.3f}"
    if not more:
        return text
    return f"{text} ({_spread(more)})"


def _spread(more: Sequence[tuple[float, float]]) -> str:
    """Mean of the differences, ± their standard deviation over seeds, or over documents if there is one seed."""
    values = [value for value, _ in more]
    spread = stdev(values) if len(values) > 1 else more[0][1]
    return f"{fmean(values):+.3f} ± {spread:.3f}, {len(values)} seed{'s' if len(values) > 1 else ''}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
