"""Memory of real processes beside the plan: measured here for a few cases, and as it was measured for all."""

import json

import pytest

from tests.parallel.measured_rank import tensors_at_peak
from tests.parallel.memory import CASES, RESULTS, beside, fullest, ranks_of, rows
from tests.parallel.pool import RankPool
from tests.scale.page import PAGE, PROCESSES, table_of

FOUND = json.loads(RESULTS.read_text())
TENSORS, PROCESS = 0.05, 0.1  # how far the plan may be off
# of tensors and of the process, where it is further off; docs/scaling.md says why
KNOWN = {
    "tensor 2, sequence parallel, bf16": (0.12, 0.17),
    "data 2, ZeRO-3": (0.06, 0.11),
    "pipeline 2, wide, bf16": (TENSORS, 0.11),
}
FEW = ("tensor 2", "data 2, ZeRO-1, bf16", "data 2, ZeRO-2", "recompute attention")


def test_the_table_is_that_of_the_results_and_the_plan() -> None:
    assert len(FOUND["cases"]) >= 20
    assert table_of(PAGE.read_text(), PROCESSES) == rows(FOUND)


@pytest.mark.parametrize("name", FOUND["cases"])
def test_the_plan_is_what_was_measured(name: str) -> None:
    planned, tensors, process = beside(name, FOUND)
    of_tensors, of_process = KNOWN.get(name, (TENSORS, PROCESS))
    assert planned == pytest.approx(tensors, rel=of_tensors)
    assert planned == pytest.approx(process, rel=of_process)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_the_plan_is_what_ranks_need(ranks: RankPool, name: str) -> None:
    given = CASES[name].config
    stage, planned = fullest(given)
    found = ranks.run(given.parallel.world_size, tensors_at_peak, given)
    assert planned == pytest.approx(max(ranks_of(stage, given, found)), rel=TENSORS)
