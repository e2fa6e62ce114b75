"""The plan beside measurements of a GPU (`docs/results/step_h200.json`, by `benchmarks/step.py`)."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import yaml

from benchmarks.step import ROWS, config
from brt_dist.config.loading import load
from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.schema import Config
from brt_dist.planning import activations, device_memory
from brt_dist.planning.devices import device_spec
from brt_dist.planning.execution import Execution
from brt_dist.planning.layout_plan import Planner

FIGURES = Path(__file__).parents[3] / "docs" / "results" / "step_h200.json"
MEASURED = {row["row"]: row for row in json.loads(FIGURES.read_text())}


@pytest.mark.parametrize("row", ROWS)
def test_time_of_a_step(row: str) -> None:
    """The host's time was fitted on the first row; shares of the peak are from a profile of an H100."""
    given = load(yaml.safe_dump(config("cuda", "150m", row)), []).config
    planned = Planner(given, device_spec("h200")).plan(given.parallel).time.total
    assert planned == pytest.approx(median(MEASURED[row]["seconds"]), rel=0.1)


def test_a_recurrent_layer_is_slower_and_transformer_xl_slowest() -> None:
    """Seconds of a token."""
    found = {}
    for row in ROWS:
        given = load(yaml.safe_dump(config("cuda", "150m", row)), []).config
        plan = Planner(given, device_spec("h200")).plan(given.parallel)
        found[row] = 1 / plan.tokens_per_second
    measured = {row: median(MEASURED[row]["seconds"]) / MEASURED[row]["tokens"] for row in ROWS}
    assert sorted(found, key=lambda row: found[row]) == sorted(measured, key=lambda row: measured[row])


@pytest.mark.parametrize("row", ROWS)
def test_peak_memory_of_a_step(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peaks were measured before backward passes made norms and windows again."""

    def keeping(config: Config, execution: Execution) -> LocalSegment:
        return replace(activations.local_segment(config, execution), remakes=False)

    monkeypatch.setattr(device_memory, "local_segment", keeping)
    given = load(yaml.safe_dump(config("cuda", "150m", row)), []).config
    planned = Planner(given, device_spec("h200")).plan(given.parallel).memory.device
    assert planned == pytest.approx(MEASURED[row]["peak_bytes"], rel=0.05)
