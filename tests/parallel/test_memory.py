"""Memory of real processes beside the plan: measured here for a few cases, and recorded for all."""

import json

import pytest

from brt_dist.config.loading import dump, load
from tests.parallel.measured_rank import most_in_use, tensors_at_peak
from tests.parallel.memory import CASES, RESULTS, beside, fullest, ranks_of, rows
from tests.parallel.pool import RankPool
from tests.scale.page import PAGE, PROCESSES, table_of

FOUND = json.loads(RESULTS.read_text())
TENSORS, PROCESS = 0.05, 0.1  # how far the plan may be off
FEW = ("tensor 2", "data 2, ZeRO-1, bf16", "data 2, ZeRO-2", "recompute attention", "data 2, ZeRO-3")


def test_the_table_is_that_of_the_results_and_the_plan() -> None:
    assert set(FOUND) == set(CASES)
    assert table_of(PAGE.read_text(), PROCESSES) == rows(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_the_plan_is_what_was_measured(name: str) -> None:
    planned, tensors, process = beside(name, FOUND)
    assert planned == pytest.approx(tensors, rel=TENSORS)
    assert planned == pytest.approx(process, rel=PROCESS)


@pytest.mark.parametrize("name", CASES)
def test_no_case_breaks_a_rule(name: str) -> None:
    load(dump(CASES[name].config), [])


@pytest.mark.parametrize(
    ("events", "most"),
    [
        ([(1, 0, 100), (2, 200, 50), (3, 0, -100), (4, 0, 30)], 80),
        ([(1, 0, 100), (2, 200, 50), (3, 50, 20)], 70),  # the first 100 bytes were freed, as others lie there now
        ([(1, 0, 100), (2, 100, 50), (3, 300, -7), (4, 500, 10)], 160),  # what was there before is not part of it
        (
            [(2, 0, 100), (1, 500, 900), (3, 500, -900), (5, 900, 10)],
            110,
        ),  # in any order; the peak before does not count
    ],
)
def test_what_a_thread_of_gloo_frees_is_known_when_others_lie_there(
    events: list[tuple[int, int, int]], most: int
) -> None:
    assert most_in_use(events, began=3) == most


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_the_plan_is_what_ranks_need(ranks: RankPool, name: str) -> None:
    given = CASES[name].config
    stage, planned = fullest(given)
    found = ranks.run(given.parallel.world_size, tensors_at_peak, given)
    assert planned == pytest.approx(max(ranks_of(stage, given, found)), rel=TENSORS)
