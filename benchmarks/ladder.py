"""From recall to language modelling: recurrent, sliding window, and Transformer-XL with two and four times the window.

`python -m benchmarks.ladder --out build/ladder` climbs from tasks that only memory can solve to text:

* recall, multi-query recall, last write wins: keys and values among noise (benchmarks/recall.py, pairs.py);
* facts: sentences in books, one at a time, asked for 1 to 1,000 windows later (`brt data corpus facts`);
* books and code, as bytes and as BPE: bits per token on whole held-out documents, all of them and far into each; what
  is gained from near to far is how much a model adapts to its document.

On each rung all models have the same number of parameters and read the same number of tokens.  For each kind learning
rates are tried on seed 0, beyond an edge of the grid as long as the edge is best; the other seeds use the best one.
Then every kind is trained again for as many steps as fit in the reference's time, by CPU seconds of a step.

It prints a table, and writes OUT/SCALE/ladder.json, ladder.md and ladder.png after each rung.  Run again to continue:
what is in the file is not trained again, and text goes on from its last checkpoint.  One process, one thread, on a CPU.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.cells import Cell, Cells, Train
from benchmarks.figures import shows
from benchmarks.ladder_report import draw, table, tables
from benchmarks.ladder_results import bits, equal_steps, next_rates, score, tried
from benchmarks.ladder_rungs import KINDS, REFERENCE, RUNGS, learning_rate, step_costs, trained_cell
from benchmarks.ladder_texts import prepare
from brt_dist.files import write_atomic


def climb(rung: str, cells: Cells, options: argparse.Namespace) -> Iterator[Cell]:
    """Train what is missing of a rung: the search, the other seeds, then equal time; yield each new cell."""
    size, seeds = RUNGS[rung].sizes[options.scale], range(options.seeds)

    def fill(keys: list[Cell], train: Train | None = None) -> Iterator[Cell]:
        yield from cells.complete(keys, train or partial(trained_cell, options=options))
        if not all(map(cells.find, keys)):
            raise SystemExit(f"{rung}: the process of a model ended early; run the same command again to continue")

    def key(kind: str, seed: int, rate: int, steps: int) -> Cell:
        return {"rung": rung, "scale": options.scale, "kind": kind, "seed": seed, "rate": rate, "steps": steps}

    rates = {}
    for kind in options.only:
        while wanted := next_rates(tried(cells.cells, rung, kind, size.steps), size.rate, options.rates):
            yield from fill([key(kind, 0, rate, size.steps) for rate in wanted])
        found = tried(cells.cells, rung, kind, size.steps)
        rates[kind] = min(found, key=lambda rate: found[rate])
    yield from fill([key(kind, seed, rate, size.steps) for seed in seeds for kind, rate in rates.items()])
    cost = {"rung": rung, "scale": options.scale, "measured": "time of a step"}
    yield from fill([cost], partial(step_costs, options=options))
    measured = cells.find(cost) or {}
    steps = {kind: equal_steps(size.steps, measured, kind) for kind in rates}
    yield from fill([key(kind, seed, rate, steps[kind]) for seed in seeds for kind, rate in rates.items()])


def told(cell: Cell) -> str:
    """A line about a new cell."""
    if "kind" not in cell:
        seconds = (f"{kind} {found:.4f}" for kind, found in cell["cpu_seconds"].items())
        return f"{cell['rung']}: CPU seconds of a step: {', '.join(seconds)}"
    return (
        f"{cell['rung']}, {cell['kind']}, seed {cell['seed']}, {cell['steps']} steps, rate "
        f"{learning_rate(cell['rate']):g}: {score(cell):.3f}, {bits(cell):.3f} bits, {cell['cpu_seconds']:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/ladder"))
    parser.add_argument("--rungs", nargs="*", default=list(RUNGS), choices=RUNGS, metavar="RUNG", help=", ".join(RUNGS))
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--scale", choices=("tiny", "small"), default="tiny", help="sizes and steps")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0, 1, ...) for each")
    parser.add_argument("--rates", type=int, default=5, help="largest number of learning rates to try")
    parser.add_argument("--asked", type=int, default=256, help="documents of a task with questions")
    parser.add_argument("--timed", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--quick", action="store_true", help="few steps: only checks that everything works")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print and plot the results in such a file")
    options = parser.parse_args()
    if shows(parser, options, tables):
        draw(Cells(options.show).cells, options.show.with_suffix(".png"))
        return 0
    if options.quick:
        options.scale, options.seeds, options.rates, options.asked, options.timed = "quick", 1, 1, 64, 3
    if REFERENCE not in options.only:
        parser.error(f"--only must name {REFERENCE}, which the others are compared with")
    os.environ["OMP_NUM_THREADS"], os.environ["PYTHONWARNINGS"] = "1", "ignore"
    options.out = options.out / options.scale
    options.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.out / "ladder.json")
    for rung in options.rungs:
        prepare(rung, options.out)
        for cell in climb(rung, cells, options):
            print(told(cell), flush=True)
        write_atomic(options.out / "ladder.md", table(cells.cells) + "\n")
        draw(cells.cells, options.out / "ladder.png")
    print(tables(cells.cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
