"""Arithmetic of `benchmarks.ladder`: learning-rate search, equal time, and the figures of the table from the cells."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cells import Cell
from benchmarks.ladder_rungs import KINDS, REFERENCE, RUNGS


@dataclass(frozen=True)
class Figure:
    """A figure of a kind on a rung, with a value for each seed."""

    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.seeds) / len(self.seeds)


@dataclass(frozen=True)
class Row:
    """A kind on a rung.

    Attributes:
        every, far: right answers, or bits per token or byte, of all and of those at `Rung.far` or beyond.
        gain: of text, bits up to `Rung.far` less bits beyond: what is gained from having read much.
        every_in_time, far_in_time: the same after as much time as the reference took; None: not trained.
        steps, steps_in_time: of training.
        seconds: CPU seconds of a step, relative to the reference; None: not measured.
        rate: the learning rate, in half decades.
        at_edge: whether it is the least or the greatest that was tried.
        parameters: of the whole model.
    """

    rung: str
    kind: str
    every: Figure
    far: Figure
    gain: Figure | None
    every_in_time: Figure | None
    far_in_time: Figure | None
    steps: int
    steps_in_time: int | None
    seconds: float | None
    rate: int
    at_edge: bool
    parameters: int


def score(cell: Cell, first: int = 0, end: float = math.inf) -> float:
    """Share of right answers, or bits per token of text, in the bins that begin in [first, end); nan if it has none."""
    chosen = [number for number, edge in enumerate(cell["edges"]) if first <= edge < end]
    count = sum(cell["counts"][number] for number in chosen)
    return sum(cell["right" if "right" in cell else "bits"][number] for number in chosen) / count if count else math.nan


def bits(cell: Cell) -> float:
    """Bits per answer or token; what a learning rate is chosen by."""
    found = float(sum(cell["bits"]) / sum(cell["counts"]))
    return found if math.isfinite(found) else math.inf


def next_rates(tried: Mapping[int, float], first: int, most: int) -> list[int]:
    """Learning rates to try next: `first` with one on either side, then beyond an edge as long as the edge is best.

    Args:
        tried: bits by learning rate, in half decades.
        first: where the search begins.
        most: how many may be tried.
    """
    begin = [first - 1, first, first + 1] if most >= 3 else [first]
    if missing := [rate for rate in begin if rate not in tried]:
        return missing
    best = min(tried, key=lambda rate: tried[rate])
    if len(tried) < most and best == min(tried):
        return [best - 1]
    return [best + 1] if len(tried) < most and best == max(tried) else []


def equal_steps(steps: int, cost: Cell, kind: str) -> int:
    """Steps of a kind in the time in which the reference takes `steps`, at least one.

    Args:
        cost: has `cpu_seconds` of a step by kind.
    """
    seconds = cost["cpu_seconds"]
    return max(1, round(steps * seconds[REFERENCE] / seconds[kind]))


def tried(cells: Sequence[Cell], rung: str, kind: str, steps: int) -> dict[int, float]:
    """Bits by learning rate, of seed 0."""
    return {cell["rate"]: bits(cell) for cell in _of(cells, rung, kind) if cell["steps"] == steps and not cell["seed"]}


def rows(cells: Sequence[Cell]) -> Iterator[Row]:
    """The rows of the table: of each rung and kind that has cells with as many steps as the reference."""
    for rung in (rung for rung in RUNGS if _of(cells, rung, REFERENCE)):
        steps = max(cell["steps"] for cell in _of(cells, rung, REFERENCE))
        cost = next((cell for cell in cells if cell["rung"] == rung and "kind" not in cell), None)
        for kind in KINDS:
            rates = tried(cells, rung, kind, steps)
            if not rates:
                continue
            rate = min(rates, key=lambda rate: rates[rate])
            chosen = sorted(
                (cell for cell in _of(cells, rung, kind) if cell["rate"] == rate), key=lambda cell: cell["seed"]
            )
            in_tokens = [cell for cell in chosen if cell["steps"] == steps]
            number = equal_steps(steps, cost, kind) if cost else None
            in_time = [cell for cell in chosen if cell["steps"] == number]
            far = RUNGS[rung].far
            gains = [score(cell, 0, far) - score(cell, far) for cell in in_tokens]
            yield Row(
                rung=rung,
                kind=kind,
                every=Figure(tuple(map(score, in_tokens))),
                far=Figure(tuple(score(cell, far) for cell in in_tokens)),
                gain=None if RUNGS[rung].asks else Figure(tuple(gains)),
                every_in_time=Figure(tuple(map(score, in_time))) if in_time else None,
                far_in_time=Figure(tuple(score(cell, far) for cell in in_time)) if in_time else None,
                steps=steps,
                steps_in_time=number,
                seconds=cost["cpu_seconds"][kind] / cost["cpu_seconds"][REFERENCE] if cost else None,
                rate=rate,
                at_edge=len(rates) > 1 and rate in (min(rates), max(rates)),
                parameters=in_tokens[0]["parameters"],
            )


def behind(row: Row, reference: Row, in_time: bool = False) -> list[float]:
    """Bits of a text more than the reference's with the same seed, for the seeds from 0 on that both have."""
    ours = row.every_in_time if in_time else row.every
    return [] if ours is None else [a - b for a, b in zip(ours.seeds, reference.every.seeds, strict=False)]


def curves(cells: Sequence[Cell], rung: str) -> dict[str, list[tuple[int, float]]]:
    """By kind, at equal tokens: the first distance or position of each bin, and the mean over seeds of its score."""
    found = {}
    for row in rows([cell for cell in cells if cell["rung"] == rung]):
        chosen = [c for c in _of(cells, rung, row.kind) if (c["rate"], c["steps"]) == (row.rate, row.steps)]
        edges = chosen[0]["edges"]
        counts = zip(*(cell["counts"] for cell in chosen), strict=True)  # of each bin, by seed
        found[row.kind] = [
            (edge, sum(score(cell, edge, end) for cell in chosen) / len(chosen))
            for edge, end, counted in zip(edges, [*edges[1:], math.inf], counts, strict=True)
            if all(counted)
        ]
    return found


def _of(cells: Sequence[Cell], rung: str, kind: str) -> list[Cell]:
    return [cell for cell in cells if cell["rung"] == rung and cell.get("kind") == kind]
