"""Trains the rows of a table, each as a sweep over seeds, and measures every model that is done."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.errors import ExitCode
from brt_dist.files import write_atomic
from launch.reproduce.kit import Row
from launch.sweep.grid import Point
from launch.sweep.run import sweep

if TYPE_CHECKING:
    from rich.console import Console

_OF_THE_USER = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)

Measure = Callable[[Path], Mapping[str, Any]]
"""Measures the model of a run on the held-out documents: the result of `brt eval --json` for one dataset."""


@dataclass(frozen=True)
class Trained:
    """A seed of a row.

    Attributes:
        row: its name.
        seed: of weights, data order and dropout.
        run: the run directory.
        verdict: how training ended.
        step: the last one.
        found: the result of `brt eval`; None if training has not finished.
    """

    row: str
    seed: int
    run: Path
    verdict: str
    step: int
    found: Mapping[str, Any] | None


def train_rows(
    rows: Sequence[Row],
    settings: Sequence[str],
    seeds: int,
    out: Path,
    measure: Measure,
    held_out: str,
    console: "Console",
) -> tuple[list[Trained], int]:
    """Train and measure; finished runs are left alone, stopped ones continue.

    Args:
        rows: to train.
        settings: settings of all rows, which override their own.
        seeds: how many, from 0.
        out: OUT/ROW/seed=N is a run; OUT/ROW/seed=N.json what was measured.
        measure: a run.
        held_out: description of what `measure` reads; a model measured on something else is measured again.
        console: standard error.

    Returns:
        What was trained, and the exit code of the first run that did not finish, or 0.

    Raises:
        ConfigError: some runs of a row cannot be trained.
    """
    done, code = list[Trained](), 0
    points = [Point(f"seed={seed}", {"run.seed": str(seed)}) for seed in range(seeds)]
    for row in rows:
        console.print(f"\n{row.name}", style="bold", highlight=False)
        overrides = [*row.overrides, *settings, f"run.directory={json.dumps(str(out / row.key))}"]
        swept = sweep(row.sources, overrides, points, console)
        for result in swept.results:
            seed = int(result.settings["run.seed"])
            if seed >= seeds:  # from an earlier call with more seeds
                continue
            found = (
                measured_once(result.run, {"step": result.step, "held_out": held_out}, measure)
                if result.verdict == "finished"
                else None
            )
            done.append(Trained(row.name, seed, result.run, result.verdict, result.step, found))
        code = code or swept.exit_code
        if swept.exit_code in _OF_THE_USER:
            break
    return done, code


def measured_once(run: Path, facts: Mapping[str, Any], measure: Measure) -> Mapping[str, Any]:
    """What was measured on `held_out`, now or earlier."""
    path = run.with_name(f"{run.name}.json")
    try:
        before: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        before = {}
    if facts.items() <= before.items():
        return before
    found = {**facts, **measure(run)}
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    return found
