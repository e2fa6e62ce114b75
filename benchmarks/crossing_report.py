"""Table of the results of `benchmarks.crossing`."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Cell = dict[str, Any]
BASE = "sliding window"


def _same(cells: Sequence[Cell], **key: Any) -> list[Cell]:
    return [cell for cell in cells if key.items() <= cell.items()]


def differences(cells: Sequence[Cell], kind: str, window: int, steps: int) -> list[float]:
    """Bits per byte more than the sliding window with the same window, seed and budget; one value a seed."""
    return [
        cell["carried"] - base["carried"]
        for cell in _same(cells, kind=kind, window=window, steps=steps)
        for base in _same(cells, kind=BASE, window=window, steps=steps, seed=cell["seed"])
    ]


def over_documents(cell: Cell, base: Cell) -> float:
    """Standard error, over documents, of the difference of two models on the same documents (ratio estimator)."""
    more = [a - b for a, b in zip(cell["document_bits"], base["document_bits"], strict=True)]
    sizes, count = cell["document_bytes"], len(more)
    mean = sum(more) / sum(sizes)
    residuals = [bits - mean * size for bits, size in zip(more, sizes, strict=True)]
    return math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / sum(sizes)


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each window and budget, a column a kind: bits per byte, and more than the sliding window."""
    names = list(dict.fromkeys(cell["kind"] for cell in cells))
    rows = [["window", "million bytes", *names]]
    for window, steps in sorted({(cell["window"], cell["steps"]) for cell in cells}):
        row = [str(window), f"{min(c['bytes'] for c in _same(cells, window=window, steps=steps)) / 1e6:.1f}"]
        for kind in names:
            found = _same(cells, kind=kind, window=window, steps=steps)
            row.append(_cell(found, differences(cells, kind, window, steps) if kind != BASE else []))
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(found: Sequence[Cell], more: Sequence[float]) -> str:
    if not found:
        return "-"
    text = f"{fmean(cell['carried'] for cell in found):.3f}"
    if more:
        text += f" ({fmean(more):+.3f}" + (f" ± {stdev(more):.3f}" if len(more) > 1 else "") + ")"
    return text
