"""Tables in docs are those of the figures committed beside them."""

import json
from importlib import import_module
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

from benchmarks import crossing_report, lengths, plan_time, processes, table_steps
from benchmarks.crossing_plot import draw
from benchmarks.step import table
from launch.reproduce.kit import rows

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["step_h200", "step_cpu_small", "step_cpu_tiny", "step_cpu_medium"])
def test_the_tables_of_a_step(name: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert table(figures) in (DOCS / "performance.md").read_text()


@pytest.mark.parametrize("module", [lengths, processes])
def test_the_tables_of_lengths_and_processes(module: ModuleType) -> None:
    name = module.__name__.split(".")[-1]
    figures, page = json.loads((DOCS / "results" / f"{name}.json").read_text()), (DOCS / "performance.md").read_text()
    for part in module.text(figures).split("\n\n"):
        assert part in page


@pytest.mark.parametrize(
    ("module", "name", "document"),
    [
        ("mixers_report", "mixers", "results.md"),
        ("languages", "languages", "results.md"),
        ("masked", "masked", "results.md"),
        ("denoise", "denoise", "results.md"),
        ("sparse", "sparse", "kinds/sparse.md"),
        ("bst", "bst", "kinds/bst.md"),
        ("table_steps", "table_steps", "results.md"),
    ],
)
def test_the_tables_of_comparisons(module: str, name: str, document: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert import_module(f"benchmarks.{module}").table(figures) in (DOCS / document).read_text()


def test_the_table_of_planned_times() -> None:
    """Planned anew from the calibration, so that the page says what the plan is worth today."""
    figures = json.loads((DOCS / "results" / "plan_time.json").read_text())
    assert plan_time.text(figures) in (DOCS / "scaling.md").read_text()
    rows = plan_time.compared(figures)
    as_calibrated, corrected = (median(map(abs, plan_time.errors(rows, which))) for which in (False, True))
    assert len(rows) >= 12 and as_calibrated <= 0.15 and corrected <= 0.15
    assert len(plan_time.misordered(rows)) <= 0.01 * len(plan_time.apart(rows))


def test_the_tables_and_the_plot_of_the_crossing(tmp_path: Path) -> None:
    cells = json.loads((DOCS / "results" / "crossing.json").read_text())
    assert crossing_report.table(cells) in (DOCS / "results.md").read_text()
    assert crossing_report.adaptation(cells) in (DOCS / "results.md").read_text()
    assert crossing_report.worth(cells) in (DOCS / "state.md").read_text()
    for name in ("crossing_changes", "crossing_cell_rate"):
        changed = json.loads((DOCS / "results" / f"{name}.json").read_text())
        assert crossing_report.changes(changed, changed[0]["set"], 500) in (DOCS / "state.md").read_text()
    draw(cells, tmp_path / "crossing.png")
    assert (tmp_path / "crossing.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_of_the_papers_table_is_the_sum_of_its_layers() -> None:
    parts = {part for row in rows("table1", "paper") for part in table_steps.weights(row)}
    seconds = {key: [1.0] for key in parts} | {part: [4.0] for part in parts if part.endswith("/stack")}
    seconds |= {"loss": [0.5], "window 2048, segment 2048": [3.0, 2.0, 9.0]}
    found = table_steps.seconds(seconds)
    assert (found["XL:2048"], found["Slide:13L"], found["Rec:fixed:skip"]) == (12 * 3.0 + 0.5, 13.5, 12.5)
    assert found["Feed:fixed:skip"] == pytest.approx(12.5)  # eleven layers with feedback, and a recurrent one
