"""The ladder: equal sizes, search, equal time, the figures of its table, and that docs/results.md shows its JSON."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cells import Cell, Cells
from benchmarks.ladder_report import compared, draw, table
from benchmarks.ladder_results import behind, bits, curves, equal_steps, next_rates, rows, score, tried
from benchmarks.ladder_rungs import KINDS, RUNGS, configuration, learning_rate
from benchmarks.ladder_texts import CODE_BYTES, FACTS_COPIES, LARGEST, chosen
from benchmarks.models import parameter_count
from brt_dist.files import write_atomic

ROOT = Path(__file__).parents[3]
COST = {"recurrent": 0.04, "sliding window": 0.02, "XL, window x2": 0.05, "XL, window x4": 0.1}


def cell(kind: str, seed: int, rate: int, steps: int, right: list[int], bits: list[float]) -> Cell:
    key = {"rung": "recall", "scale": "tiny", "kind": kind, "seed": seed, "rate": rate, "steps": steps}
    return {**key, "edges": [0, 8, 16], "counts": [10, 20, 40], "right": right, "bits": bits, "parameters": 100}


CELLS: list[Cell] = [
    cell("recurrent", 0, -5, 100, [10, 20, 30], [7.0, 0.0, 7.0]),
    cell("recurrent", 0, -4, 100, [10, 20, 40], [70.0, 0.0, 0.0]),
    cell("recurrent", 1, -5, 100, [10, 20, 36], [7.0, 0.0, 0.0]),
    cell("sliding window", 0, -5, 100, [10, 10, 4], [7.0, 70.0, 7.0]),
    cell("sliding window", 0, -6, 100, [0, 0, 0], [math.nan, 0.0, 0.0]),
    cell("sliding window", 0, -4, 100, [0, 0, 0], [700.0, 0.0, 0.0]),
    cell("sliding window", 0, -5, 200, [10, 20, 8], [7.0, 7.0, 7.0]),
    {"rung": "recall", "scale": "tiny", "measured": "time of a step", "cpu_seconds": COST},
]


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_all_kinds_have_one_size_and_read_as_many_tokens(scale: str) -> None:
    for rung in RUNGS.values():
        size = rung.sizes[scale]
        made = {kind: configuration(kind, size, 50, {"seed": 0, "steps": 9, "rate": -4}) for kind in KINDS}
        counts = {kind: parameter_count(config.model) for kind, config in made.items()}
        for kind, config in made.items():
            assert config.data.segment * config.data.streams == size.segment * size.streams
            assert config.model.window == size.window * (KINDS[kind] or 1)
            assert abs(counts[kind] - counts["recurrent"]) <= size.layers * size.width
            used = {config.model.mixer_of(layer).kind for layer in range(size.layers)}
            assert used == ({"window", "recurrent"} if kind == "recurrent" else {"window"})


@pytest.mark.parametrize("scale", ["quick", "tiny", "small"])
def test_there_is_a_document_for_each_stream(scale: str) -> None:
    books, code = 38, CODE_BYTES["train"] // LARGEST
    for name, documents in (("books", books), ("code", code), ("facts", books * FACTS_COPIES)):
        size = RUNGS[name].sizes[scale]
        for kind in KINDS:
            config = configuration(kind, size, 50, {"seed": 0, "steps": 9, "rate": -4})
            assert config.data.streams <= documents


def test_far_is_beyond_what_the_widest_window_sees() -> None:
    """A layer sees its block and the one before, so a question sees less than one block more than `layers` of them."""
    for rung in ("recall", "multi-query", "facts"):
        size = RUNGS[rung].sizes["tiny"]
        sees = (size.layers + 1) * 4 * size.window  # tokens, of XL with four times the window
        assert RUNGS[rung].far * size.window >= sees


def test_learning_rates_are_searched_beyond_an_edge_that_is_best() -> None:
    assert next_rates({}, -4, 5) == [-5, -4, -3]
    assert next_rates({-5: 1.0, -3: 1.0}, -4, 5) == [-4]
    assert next_rates({-5: 2.0, -4: 1.0, -3: 2.0}, -4, 5) == []
    assert next_rates({-5: 1.0, -4: 2.0, -3: math.inf}, -4, 5) == [-6]
    assert next_rates({-5: 3.0, -4: 2.0, -3: 1.0}, -4, 5) == [-2]
    assert next_rates({-5: 3.0, -4: 2.0, -3: 1.0, -2: 0.5, -1: 0.1}, -4, 5) == []
    assert next_rates({}, -4, 1) == [-4] and next_rates({-4: 1.0}, -4, 1) == []
    assert [learning_rate(rate) for rate in (-4, -5, -6)] == [0.01, 0.00316, 0.001]


def test_as_much_time_is_fewer_steps_of_a_model_whose_step_is_longer() -> None:
    cost = CELLS[-1]
    assert {kind: equal_steps(100, cost, kind) for kind in KINDS} == {
        "recurrent": 100, "sliding window": 200, "XL, window x2": 80, "XL, window x4": 40
    }  # fmt: skip
    assert equal_steps(1, cost, "XL, window x4") == 1


def test_scores_are_shares_of_the_answers_and_not_means_of_bins() -> None:
    found = CELLS[0]
    assert score(found) == 60 / 70
    assert score(found, 8) == 50 / 60 and score(found, 16) == 30 / 40 and score(found, 0, 16) == 1.0
    assert math.isnan(score(found, 32))
    assert bits(found) == 14 / 70 and bits(CELLS[4]) == math.inf
    text = {key: value for key, value in found.items() if key != "right"}
    assert score(text) == 14 / 70 and score(text, 16) == 7 / 40
    assert tried(CELLS, "recall", "sliding window", 100) == {-5: 84 / 70, -6: math.inf, -4: 10.0}


def test_rows_have_the_best_rate_all_seeds_and_both_comparisons() -> None:
    recurrent, window = rows(CELLS)
    assert (recurrent.kind, recurrent.rate, recurrent.at_edge, recurrent.steps) == ("recurrent", -5, True, 100)
    assert recurrent.every.seeds == (60 / 70, 66 / 70) and recurrent.far.seeds == (0.75, 0.9)
    assert recurrent.every.mean == pytest.approx(63 / 70) and recurrent.gain is None
    assert recurrent.every_in_time == recurrent.every and recurrent.steps_in_time == 100
    assert (window.rate, window.at_edge, window.steps_in_time, window.seconds) == (-5, False, 200, 0.5)
    assert window.far.seeds == (0.1,)
    assert window.every_in_time is not None and window.every_in_time.seeds == (38 / 70,)
    assert window.far_in_time is not None and window.far_in_time.seeds == (0.2,)
    assert curves(CELLS, "recall") == {
        "recurrent": [(0, 1.0), (8, 1.0), (16, (0.75 + 0.9) / 2)],
        "sliding window": [(0, 1.0), (8, 0.5), (16, 0.1)],
    }
    lines = table(CELLS).splitlines()
    assert lines[2].startswith("| recall | recurrent | 0.90 (0.86 to 0.94) | 0.82 (0.75 to 0.90) | - | 2 |")
    assert lines[3].startswith("|  | sliding window | 0.34 | 0.10 | - | 1 | 0.54 | 0.20 | 1 | 100 | 200 | 0.50 |")
    assert "| 0.00316 (edge) |" in lines[2] and "| 0.00316 |" in lines[3]


def test_what_text_gains_is_bits_before_less_bits_after() -> None:
    text = {**CELLS[0], "rung": "books, bytes", "edges": [0, 1024, 2048], "bits": [30.0, 60.0, 80.0]}
    del text["right"]
    (row,) = rows([text])
    assert row.every.seeds == (170 / 70,) and row.far.seeds == (2.0,)
    assert row.gain is not None and row.gain.seeds == (90 / 30 - 2.0,)
    assert row.every_in_time is None and row.seconds is None


def test_on_texts_seeds_are_compared_with_the_same_seed() -> None:
    text = [
        {**cell(kind, seed, -4, steps, [], [7.0, 0.0, bits]), "rung": "books, bytes"}
        for kind, seed, steps, bits in [
            ("recurrent", 1, 100, 70.0), ("recurrent", 0, 100, 0.0), ("sliding window", 0, 100, 7.0),
            ("sliding window", 1, 100, 56.0), ("XL, window x2", 0, 100, 7.0), ("sliding window", 0, 200, 0.0),
            ("sliding window", 1, 200, 0.0),
        ]
    ]  # fmt: skip
    for found in text:
        del found["right"]
    text.append({"rung": "books, bytes", "measured": "time of a step", "cpu_seconds": COST})
    recurrent, window, _ = rows(text)
    assert behind(window, recurrent) == pytest.approx([0.1, -0.2])
    assert behind(window, recurrent, in_time=True) == pytest.approx([0.0, -1.0])
    assert compared([*text, *CELLS]).splitlines()[2:] == [
        "| books, bytes | sliding window | -0.050 ± 0.212 (2 seeds, 1 behind) | -0.500 ± 0.707 (2 seeds, 0 behind) |",
        "| books, bytes | XL, window x2 | +0.100 (1 seed) | - |",
    ]


def test_documents_of_a_text_are_whole_and_chosen_by_name_alone(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * 1000 * (number + 1))
    (tmp_path / "large.txt").write_bytes(b"x" * (LARGEST + 1))
    some, more = chosen(tmp_path, 40_000), chosen(tmp_path, 1 << 30)
    assert len(more) == 20 and more[: len(some)] == some
    sizes = [path.stat().st_size for path in some]
    assert sum(sizes[:-1]) < 40_000 <= sum(sizes)


def trained(key: Cell, device: Any) -> Cell:
    if key["number"] == 2 and not Path(key["flag"]).exists():
        Path(key["flag"]).touch()
        os._exit(1)  # as a process that the kernel kills
    return key | {"process": os.getpid(), "device": device.name}


@pytest.mark.slow
def test_cells_that_are_there_are_not_trained_again(tmp_path: Path) -> None:
    keys = [{"number": number, "flag": str(tmp_path / "flag")} for number in range(4)]
    cells = Cells(tmp_path / "cells.json")
    assert [cell["number"] for cell in cells.complete(keys, trained)] == [0, 1]  # it ends with its process
    again = Cells(tmp_path / "cells.json")
    assert [cell["number"] for cell in again.complete(keys, trained)] == [2, 3]
    assert list(again.complete(keys, trained)) == []
    found = json.loads((tmp_path / "cells.json").read_text())
    assert [cell["number"] for cell in found] == [0, 1, 2, 3]
    processes = [cell["process"] for cell in found]
    assert processes[0] == processes[1] != processes[2] == processes[3] and os.getpid() not in processes


def waits(key: Cell, device: Any) -> Cell:
    write_atomic(Path(key["pid"]), str(os.getpid()))
    time.sleep(600)
    return key


COMPLETE = """
from sys import argv
from pathlib import Path
from benchmarks.cells import Cells
from tests.unit.model.test_benchmark_ladder import waits
list(Cells(Path(argv[1]) / "cells.json").complete([{"pid": str(Path(argv[1]) / "pid")}], waits))
"""


@pytest.mark.slow
def test_the_process_of_a_model_ends_with_the_benchmark(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", COMPLETE, tmp_path], cwd=ROOT) as benchmark:
        until((tmp_path / "pid").exists)
        child = Path("/proc", (tmp_path / "pid").read_text())
        assert child.exists()
        benchmark.kill()
    until(lambda: not child.exists() or "zombie" in (child / "status").read_text())


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_docs_show_what_is_in_the_results(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs/results/ladder.json").read_text())
    section = (ROOT / "docs/results.md").read_text().split("## The ladder")[1].split("\n## ")[0]
    assert table(cells) in section and compared(cells) in section
    for rung in dict.fromkeys(cell["rung"] for cell in cells):
        of_rung = [row for row in rows(cells) if row.rung == rung]
        found = curves(cells, rung)
        assert list(found) == [row.kind for row in of_rung]
        for row in of_rung:
            chosen = [
                cell
                for cell in cells
                if (cell["rung"], cell.get("kind")) == (rung, row.kind)
                and (cell["rate"], cell["steps"]) == (row.rate, row.steps)
            ]
            assert len(chosen) == len(row.every.seeds)
            name = "right" if RUNGS[rung].asks else "bits"
            shares = [np.divide(cell[name], np.maximum(cell["counts"], 1)) for cell in chosen]
            shown = np.all([np.array(cell["counts"]) > 0 for cell in chosen], axis=0)
            assert [value for _, value in found[row.kind]] == pytest.approx(np.mean(shares, axis=0)[shown].tolist())
    draw(cells, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
