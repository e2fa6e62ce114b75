"""Memory of real processes beside the plan: the table is that of the results and of this code."""

import json

import pytest

from tests.parallel.memory import RESULTS, beside, rows
from tests.scale.page import PAGE, PROCESSES, table_of

FOUND = json.loads(RESULTS.read_text())
OFF = 0.18  # the largest error of the plan that is known, see docs/scaling.md


def test_the_table_is_that_of_the_results_and_the_plan() -> None:
    assert table_of(PAGE.read_text(), PROCESSES) == rows(FOUND)


@pytest.mark.parametrize("name", FOUND["cases"])
def test_the_plan_is_no_further_off_than_told(name: str) -> None:
    planned, tensors, process = beside(name, FOUND)
    assert planned == pytest.approx(tensors, rel=OFF)
    assert tensors == pytest.approx(process, rel=0.1)  # two ways to measure agree
