"""The simulated step of a pipeline against closed forms and properties of 1F1B."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.planning.simulator.disturbance import Disturbance
from brt_dist.planning.simulator.instructions import Instruction, Kind, instructions
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import Interval, Step, simulate_step

seconds = st.floats(0.01, 10.0)
stages = st.lists(st.builds(StageSeconds, *[seconds] * 6), min_size=1, max_size=5)
pipelines = st.integers(1, 8)
micro_batches = st.integers(1, 24)


def transfers(stages: int, micro_batches: int) -> int:
    """Blocking transfers, one after the other, on the longest path of 1F1B.

    The first micro-batch crosses each boundary, and the gradients of the last one come back.  In between, the one link
    of two stages carries each micro-batch twice; a stage in the middle makes four transfers a micro-batch, and two of
    them, once, run beside compute of others, which must not be shorter.
    """
    if stages < 3 or micro_batches == 1:
        return 2 * (stages - 1) * micro_batches
    return 2 * (stages - 1) + 4 * (micro_batches - 1) - 2


@given(pipelines, micro_batches, seconds, seconds, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_equal_stages_take_the_closed_form_of_1f1b(
    p: int, m: int, forward: float, backward: float, share: float
) -> None:
    send = share * min(forward, backward)
    stage = StageSeconds(forward, backward, send, reduce=3.0, update=5.0)
    step = simulate_step([stage] * p, m)
    expected = (m + p - 1) * (forward + backward) + transfers(p, m) * send + 3 + 5
    assert step.seconds == pytest.approx(expected)
    assert step.busy(0) == pytest.approx(m * (forward + backward) + 5)


@given(pipelines, micro_batches)
@settings(deadline=None)
def test_the_bubble_is_p_minus_1_of_m_plus_p_minus_1(p: int, m: int) -> None:
    assert simulate_step([StageSeconds(1.0, 2.0)] * p, m).bubble == pytest.approx((p - 1) / (m + p - 1))


@given(stages, st.integers(1, 12))
@settings(deadline=None)
def test_more_micro_batches_never_lower_the_efficiency(given: list[StageSeconds], m: int) -> None:
    few, many = (simulate_step(given, count) for count in (m, m + 1))
    assert few.seconds / m >= many.seconds / (m + 1) - 1e-9


@given(stages, st.integers(1, 8), st.integers(1, 3), st.floats(1.0, 5.0), st.data())
@settings(deadline=None)
def test_a_straggler_delays_by_no_more_than_what_it_computes_more(
    given: list[StageSeconds], m: int, replicas: int, slowdown: float, data: st.DataObject
) -> None:
    place = data.draw(st.tuples(st.integers(0, replicas - 1), st.integers(0, len(given) - 1)))
    alone, slow = (simulate_step(given, m, replicas, Disturbance(stragglers={place: by})) for by in (1.0, slowdown))
    stage = given[place[1]]
    more = (slowdown - 1) * (m * (stage.forward + stage.backward) + stage.update)
    assert alone.seconds - 1e-9 <= slow.seconds <= alone.seconds + more + 1e-9


def test_one_straggling_stage_sets_the_pace_of_all() -> None:
    slow = simulate_step([StageSeconds(1.0, 2.0)] * 4, 1000, disturbance=Disturbance(stragglers={(0, 2): 1.5}))
    assert slow.seconds == pytest.approx(1000 * 1.5 * 3, rel=0.01)


@given(stages, micro_batches, st.integers(1, 3), st.floats(0.0, 0.5), st.integers())
@settings(deadline=None)
def test_each_instruction_is_executed_once_in_order_and_a_receive_with_its_send(
    given: list[StageSeconds], m: int, replicas: int, jitter: float, seed: int
) -> None:
    step = simulate_step(given, m, replicas, Disturbance(jitter=jitter, seed=seed))
    assert not step.stuck
    executed: dict[tuple[int, int], list[Interval]] = defaultdict(list)
    for one in step.intervals:
        executed[one.replica, one.stage].append(one)
    assert len(executed) == replicas * len(given)
    for (_, stage), done in executed.items():
        program = instructions(m, len(given), stage)
        assert list(program) == [Instruction(one.kind, one.micro_batch) for one in done]
        assert all(before.end <= after.begin for before, after in pairwise(done))
    found = {(d.replica, d.stage, d.kind, d.micro_batch): d for d in step.intervals}
    for (replica, stage, kind, number), here in found.items():
        if kind in (Kind.RECEIVE_ACTIVATION, Kind.RECEIVE_GRADIENT):
            is_activation = kind is Kind.RECEIVE_ACTIVATION
            sender = stage - 1 if is_activation else stage + 1
            sent = found[replica, sender, Kind.SEND_ACTIVATION if is_activation else Kind.SEND_GRADIENT, number]
            work = Kind.FORWARD if is_activation else Kind.BACKWARD
            assert (sent.begin, sent.end) == (here.begin, here.end)
            assert found[replica, sender, work, number].end <= here.begin
            assert here.end <= found[replica, stage, work, number].begin


@given(stages, micro_batches)
@settings(deadline=None, max_examples=30)
def test_a_step_is_never_shorter_than_the_work_of_any_stage(given: list[StageSeconds], m: int) -> None:
    step = simulate_step(given, m)
    assert step.seconds >= max(m * (one.forward + one.backward) + one.reduce + one.update for one in given) - 1e-9


def test_updates_begin_together_when_the_slowest_replica_has_agreed() -> None:
    given = [StageSeconds(1.0, 2.0, 0.1, 0.5, 1.0)] * 3
    step = simulate_step(given, 4, 2, Disturbance(stragglers={(1, 0): 2.0}))
    begun = {one.begin for one in step.intervals if one.kind is Kind.UPDATE}
    assert begun == {max(one.end for one in step.intervals if one.kind is Kind.REDUCE)}


def test_a_slow_link_costs_its_share_of_each_micro_batch() -> None:
    given = [StageSeconds(1.0, 2.0, 0.1)] * 2
    plain, slow = (simulate_step(given, 10, disturbance=Disturbance(slow_links={(0, 0): by})) for by in (1.0, 4.0))
    assert slow.seconds - plain.seconds == pytest.approx(2 * 10 * 0.3)


def test_jitter_follows_its_seed_and_keeps_the_mean_of_a_single_device() -> None:
    given = [StageSeconds(1.0, 2.0)]
    one, same, other = (
        simulate_step(given, 4000, disturbance=Disturbance(jitter=0.2, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same and one.seconds != other.seconds
    assert one.seconds == pytest.approx(12000, rel=0.02)


def test_jitter_costs_more_the_more_replicas_wait_for_the_slowest() -> None:
    given = [StageSeconds(1.0, 2.0, 0.1)] * 4
    steps = [simulate_step(given, 8, replicas, Disturbance(jitter=0.1)).seconds for replicas in (1, 4, 32)]
    assert steps[0] < steps[1] < steps[2]


def test_when_a_place_dies_all_others_wait_for_ever() -> None:
    given = [StageSeconds(1.0, 2.0, 0.1, 0.5, 0.5)] * 3
    step = simulate_step(given, 4, 2, Disturbance(failures={(0, 1): 5.0}))
    assert set(step.stuck) == {(replica, stage) for replica in range(2) for stage in range(3)}
    assert step.stuck[0, 0] in (Kind.RECEIVE_GRADIENT, Kind.SEND_ACTIVATION)
    assert {step.stuck[1, stage] for stage in range(3)} == {Kind.REDUCE}
    assert max(one.end for one in step.intervals if (one.replica, one.stage) == (0, 1)) <= 5.0


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 3 does not exist: 1 x 3"):
        simulate_step([StageSeconds(1.0, 2.0)] * 3, 4, disturbance=Disturbance(stragglers={(0, 3): 2.0}))
    with pytest.raises(ValueError, match="0 micro-batches"):
        simulate_step([StageSeconds(1.0, 2.0)], 0)


@given(stages, st.integers(1, 6))
@settings(deadline=None)
def test_times_are_those_of_the_longest_path(given: list[StageSeconds], m: int) -> None:
    """An instruction begins when its stage has come to it, and the other end of its link too."""
    given = [replace(one, tied=0.0, update=0.0, reduce=0.0) for one in given]
    assert longest_path(given, m) == pytest.approx(simulate_step(given, m).seconds)


def longest_path(given: list[StageSeconds], m: int) -> float:
    """By relaxing all constraints until nothing changes, without a clock."""
    names = {
        Kind.SEND_ACTIVATION: (Kind.RECEIVE_ACTIVATION, 1),
        Kind.RECEIVE_ACTIVATION: (Kind.SEND_ACTIVATION, -1),
        Kind.SEND_GRADIENT: (Kind.RECEIVE_GRADIENT, -1),
        Kind.RECEIVE_GRADIENT: (Kind.SEND_GRADIENT, 1),
    }
    programs = [instructions(m, len(given), stage) for stage in range(len(given))]
    begin = {(s, one.kind, one.micro_batch): 0.0 for s, program in enumerate(programs) for one in program}

    def length(stage: int, kind: Kind) -> float:
        match kind:
            case Kind.FORWARD:
                return given[stage].forward
            case Kind.BACKWARD:
                return given[stage].backward
            case Kind.SEND_ACTIVATION | Kind.SEND_GRADIENT:
                return given[stage].send
            case Kind.RECEIVE_ACTIVATION:
                return given[stage - 1].send
            case Kind.RECEIVE_GRADIENT:
                return given[stage + 1].send
        return 0.0

    changed = True
    while changed:
        changed = False
        for stage, program in enumerate(programs):
            reached = 0.0
            for one in program:
                key = (stage, one.kind, one.micro_batch)
                earliest = max(reached, begin[key])
                if one.kind in names:
                    kind, step = names[one.kind]
                    earliest = max(earliest, begin[stage + step, kind, one.micro_batch])
                changed |= earliest > begin[key]
                begin[key] = earliest
                reached = earliest + length(stage, one.kind)
    return max(at + length(stage, kind) for (stage, kind, _), at in begin.items())


def test_a_step_has_no_bubble_without_a_pipeline() -> None:
    step: Step = simulate_step([StageSeconds(1.0, 2.0, update=1.0)], 4)
    assert (step.seconds, step.bubble, step.share(Kind.FORWARD)) == (13.0, 0.0, pytest.approx(4 / 13))
