"""Tables in docs are those of the figures committed beside them."""

import json
from pathlib import Path

import pytest

from benchmarks.step import table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["step_h200", "step_cpu_small", "step_cpu_tiny"])
def test_the_tables_of_a_step(name: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert table(figures) in (DOCS / "performance.md").read_text()
