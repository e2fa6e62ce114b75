"""The simulator against real processes whose stages sleep, and against runs that were killed."""

import pytest

from brt_dist.planning.simulator.goodput import Saving, shares
from tests.parallel import goodput, slowed
from tests.parallel.pool import RankPool
from tests.scale.page import GOODPUT, PAGE, SLOWED, table_of

SLEPT, KILLED = slowed.committed(), goodput.committed()


def test_the_tables_are_those_of_the_results_and_the_simulator() -> None:
    page = PAGE.read_text()
    assert list(SLEPT) == list(slowed.CASES) and list(KILLED) == list(goodput.LAYOUTS)
    assert table_of(page, SLOWED) == slowed.rows(SLEPT)
    assert table_of(page, GOODPUT) == goodput.rows(KILLED)


@pytest.mark.parametrize("name", SLEPT)
def test_steps_were_as_simulated(name: str) -> None:
    real, model = SLEPT[name], slowed.simulated(slowed.CASES[name])
    assert model.seconds <= real.seconds <= 1.1 * model.seconds
    assert real.bubble == pytest.approx(model.bubble, abs=0.04)


@pytest.mark.parametrize("name", KILLED)
def test_goodput_was_as_simulated(name: str) -> None:
    """By less than a save for each kill: one just before a save is complete loses all since the save before."""
    run = KILLED[name]
    assert abs(run.goodput - run.simulated) * sum(run.gaps) < len(run.gaps) * run.interval


def test_the_simulated_pipeline_keeps_as_much_with_a_longer_restart() -> None:
    run = KILLED["pipeline 2"]
    restart = run.restart + 1.5
    assert shares(run.interval, Saving(run.stall, run.write, restart), run.gaps).trained == pytest.approx(run.goodput)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2 stages, the first half as fast", "4 stages, the last half as fast"])
def test_stages_wait_in_the_order_of_the_simulator(ranks: RankPool, name: str) -> None:
    """Which of two stages waits longer holds however busy the machine is, if they differ by more than a forward."""
    case = slowed.CASES[name]
    real, model = slowed.measured(ranks, case), slowed.simulated(case)
    assert real.seconds >= model.seconds  # sleeps are never shorter
    for one in range(case.stages):
        for other in range(case.stages):
            if model.idle[one] > model.idle[other] + 2 * slowed.FORWARD:
                assert real.idle[one] > real.idle[other]
