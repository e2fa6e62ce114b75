"""Tables in docs are those of the figures committed beside them."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.step import table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["step_h200", "step_cpu_small", "step_cpu_tiny"])
def test_the_tables_of_a_step(name: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert table(figures) in (DOCS / "performance.md").read_text()


@pytest.mark.parametrize(
    ("module", "name", "document"),
    [
        ("mixers_report", "mixers", "results.md"),
        ("languages", "languages", "results.md"),
        ("masked", "masked", "results.md"),
        ("denoise", "denoise", "results.md"),
    ],
)
def test_the_tables_of_comparisons(module: str, name: str, document: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert import_module(f"benchmarks.{module}").table(figures) in (DOCS / document).read_text()
