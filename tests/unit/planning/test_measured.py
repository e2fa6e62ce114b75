"""The plan beside what a GPU was measured to need (`docs/results/step_h200.json`, by `benchmarks/step.py`)."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.step import ROWS, config
from brt_dist.config.loading import load
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner

FIGURES = Path(__file__).parents[3] / "docs" / "results" / "step_h200.json"
MEASURED = {row["row"]: row for row in json.loads(FIGURES.read_text())}


@pytest.mark.parametrize("row", ROWS)
def test_peak_memory_of_a_step(row: str) -> None:
    given = load(yaml.safe_dump(config("cuda", "150m", row)), []).config
    planned = Planner(given, device_spec("h200")).plan(given.parallel).memory.device
    assert planned == pytest.approx(MEASURED[row]["peak_bytes"], rel=0.05)
