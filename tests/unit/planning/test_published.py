"""The simulator against published throughput; one row for each machine was fitted."""

from collections.abc import Sequence

import pytest

from benchmarks.published import WEAK, Compared, all_compared, table
from tests.unit.test_docs import ROOT


@pytest.fixture(scope="module")
def compared() -> Sequence[Compared]:
    return all_compared()


def test_ten_models_on_a100s_are_met(compared: Sequence[Compared]) -> None:
    weak = [one for one in compared if one.device == "a100"]
    assert len(weak) == 10 and sum(one.is_fitted for one in weak) == 1
    for one in weak:
        assert one.roofline.plain == pytest.approx(one.row.published, rel=0.06)
        assert one.plan.plain == pytest.approx(one.row.published, rel=0.15)


def test_4608_gpus_are_between_1f1b_and_the_most_interleaved(compared: Sequence[Compared]) -> None:
    few, many = (one for one in compared if one.device == "h100")
    assert few.is_fitted
    assert few.roofline.interleaved == pytest.approx(0.47, abs=1e-3) == few.plan.interleaved
    assert many.roofline.plain < 0.42 and many.roofline.interleaved == pytest.approx(0.42, rel=0.06)
    assert many.plan.plain < 0.42 and many.plan.interleaved == pytest.approx(0.42, rel=0.2)


def test_parameters_are_those_of_the_paper() -> None:
    """By eq. 2, against the first column of the table."""
    billions = (1.7, 3.6, 7.5, 18.4, 39.1, 76.1, 145.6, 310.1, 529.6, 1008.0)
    assert [round(row.model.parameters / 1e9, 1) for row in WEAK] == list(billions)


def test_the_page_has_the_table(compared: Sequence[Compared]) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert all(line in page for line in table(compared))
