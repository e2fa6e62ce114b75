"""Tables in docs are those of the figures committed beside them."""

import json
from pathlib import Path

from benchmarks.step import table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_a_step_on_a_gpu() -> None:
    figures = json.loads((DOCS / "results" / "step_h200.json").read_text())
    assert table(figures) in (DOCS / "performance.md").read_text()
