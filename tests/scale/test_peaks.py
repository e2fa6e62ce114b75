"""Memory of a device as planned, against the peak of a step of the engine that trains, on the meta device."""

import re

import pytest

from tests.scale.page import PAGE, PEAKS, table_of
from tests.scale.peaks import CASES, measured, planned, row

TABLE = table_of(PAGE.read_text(), PEAKS)[2:]
FEW = ("one rank", "tensor 2, sequence parallel", "pipeline 4, tensor 2", "delta rule, recompute layer")


@pytest.mark.parametrize("name", FEW)
def test_the_peak_is_as_planned(name: str) -> None:
    assert planned(CASES[name]).device == pytest.approx(measured(CASES[name]), rel=0.05)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if name not in FEW])
def test_all_peaks_are_as_planned(name: str) -> None:
    assert planned(CASES[name]).device == pytest.approx(measured(CASES[name]), rel=0.05)


def test_the_table_has_the_plan_of_the_code_beside_peaks_that_are_near() -> None:
    assert len(TABLE) == len(CASES) >= 20
    for line, (name, case) in zip(TABLE, CASES.items(), strict=True):
        peak = 10**6 * int(re.findall(r"([\d,]+) MB", line)[1].replace(",", ""))
        assert row(name, planned(case).device, peak).split("|")[:4] == line.split("|")[:4]
        assert planned(case).device == pytest.approx(peak, rel=0.05)
