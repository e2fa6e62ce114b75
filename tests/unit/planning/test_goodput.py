"""Goodput against closed forms, and Young's and Daly's intervals against the simulated optimum."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.goodput import intervals, shares
from brt_dist.planning.simulator.failure_rates import RATES, FailureRate
from brt_dist.planning.simulator.goodput import Saving, best_interval, daly, simulate_run, young
from tests.unit.test_docs import ROOT

HOUR = 3600.0
positive = st.floats(0.1, 1e5)


@given(positive, st.builds(Saving, st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4)))
def test_without_failures_only_the_stall_of_saves_is_missing(interval: float, saving: Saving) -> None:
    run = simulate_run(interval, saving, FailureRate(0.0, "none").hours_between(16384))
    assert run.trained == pytest.approx(1 - saving.stall / (interval + saving.stall))
    assert (run.lost, run.restarting) == (0.0, 0.0)


@given(positive, positive, st.builds(Saving, st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4)))
@settings(deadline=None, max_examples=50)
def test_shares_add_up_and_none_is_negative(interval: float, between: float, saving: Saving) -> None:
    run = simulate_run(interval, saving, between, samples=5000)
    shares = (run.trained, run.saving, run.lost, run.restarting)
    assert sum(shares) == pytest.approx(1.0) and min(shares) >= -1e-9


@pytest.mark.parametrize("between", [2 * HOUR, 24 * HOUR])
@pytest.mark.parametrize("stall", [5.0, 120.0])
def test_the_expected_time_is_that_of_exponential_failures(between: float, stall: float) -> None:
    """Daly (2006): a segment of training and its save take M exp(R/M) (exp((interval + stall)/M) - 1)."""
    interval, restart = 1800.0, 600.0
    expected = interval / (between * math.exp(restart / between) * math.expm1((interval + stall) / between))
    assert simulate_run(interval, Saving(stall, restart=restart), between).trained == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("hours", [1.8, 7.9, 100.0])
@pytest.mark.parametrize("stall", [1.0, 30.0, 300.0])
def test_daly_is_the_simulated_optimum_within_a_few_per_cent(hours: float, stall: float) -> None:
    between = hours * HOUR
    saving = Saving(stall, restart=300.0)
    best = best_interval(saving, between)
    assert best == pytest.approx(exact(stall, between), rel=0.01)
    assert daly(stall, between) == pytest.approx(best, rel=0.05)
    # of first order: it leaves out that a failure may come within a save
    assert young(stall, between) == pytest.approx(best, rel=0.05 + math.sqrt(stall / between))
    reached = [
        simulate_run(one, saving, between).trained for one in (best, daly(stall, between), young(stall, between))
    ]
    assert max(reached) - min(reached) < 2e-3


def exact(stall: float, between: float) -> float:
    """Where the expected time of a run, with the formula above, is least: its derivative by the interval is 0."""
    low, high = 0.0, between
    for _ in range(60):
        middle = (low + high) / 2
        power = (middle + stall) / between
        low, high = (middle, high) if middle / between * math.exp(power) < math.expm1(power) else (low, middle)
    return low


def test_saves_that_are_written_for_longer_lose_that_much_more_at_a_failure() -> None:
    between, interval = 8 * HOUR, 1200.0
    direct, behind = (simulate_run(interval, Saving(10.0, write), between) for write in (0.0, 300.0))
    assert behind.lost - direct.lost == pytest.approx(300 / between, rel=0.1)


@given(st.floats(600, 1e5), st.floats(1, 600), st.floats(0, 600), st.floats(0, 3000), st.integers())
@settings(deadline=None, max_examples=20)
def test_a_clock_that_ticks_through_saves_and_failures_finds_the_same(
    between: float, stall: float, write: float, restart: float, seed: int
) -> None:
    """The same run, one event after the other."""
    interval, failures = 700.0, 3000
    generator = random.Random(seed)
    kept = total = 0.0
    for _ in range(failures):
        dies = generator.expovariate(1 / between)
        total += dies
        now, trained = restart, 0.0
        while now + interval + stall + write <= dies:
            now, trained = now + interval + stall, trained + interval
        kept += trained
    run = simulate_run(interval, Saving(stall, write, restart), between)
    assert run.trained == pytest.approx(kept / total, abs=0.05)


def test_rates_are_those_of_the_papers() -> None:
    assert RATES["llama3"].hours_between(16384) == pytest.approx(3.1, abs=0.05)  # "one every three hours"
    assert RATES["rsc1"].hours_between(16384) == pytest.approx(1.8, abs=0.05)  # the paper's projection
    assert RATES["rsc1"].hours_between(131072) == pytest.approx(0.23, abs=0.01)
    assert 24 < RATES["opt"].hours_between(992) * 2 < 48  # "well over one restart every two days"


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        simulate_run(0.0, Saving(1.0), 100.0)
    with pytest.raises(ValueError, match="no best interval"):
        best_interval(Saving(0.0), 100.0)


def test_the_page_has_the_tables() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert all(line in page for line in (*shares(), *intervals()))
