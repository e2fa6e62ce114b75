"""The time left of a run, at every point of runs whose steps, evaluations and saves take known times."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brt_dist.config.schema import RunConfig
from brt_dist.events import AttemptEvent, CheckpointEvent, EvaluationEvent, Event, SampleEvent, StepEvent
from launch.views.pace import Pace

STEP, FIRST, EVALUATION, SAMPLES, STALL, SAVE = 2.0, 30.0, 40.0, 5.0, 3.0, 11.0


def events_of(run: RunConfig, start: int = 0, at: float = 1000.0) -> Iterator[Event]:
    """What a run writes, with the times that it takes: the end of the last save is its end."""
    now, saved = at, None
    yield AttemptEvent(time=now, start_step=start)
    for step in range(start + 1, run.steps + 1):
        now += FIRST if step == start + 1 else STEP
        if step % run.log_every == 0 or step == run.steps:
            yield StepEvent(time=now, step=step)
        if saved is not None:  # it is reported after a later step
            yield CheckpointEvent(time=now, step=saved, stall_seconds=STALL, seconds=SAVE)
            saved = None
        is_last = step == run.steps
        if is_last or (run.evaluate_every and step % run.evaluate_every == 0):
            for memory in ("carried", "cleared"):
                now += EVALUATION / 2
                yield EvaluationEvent(time=now, step=step, dataset="validation", memory=memory, seconds=EVALUATION / 2)
            now += SAMPLES
            yield SampleEvent(time=now, step=step)
        if is_last:
            yield CheckpointEvent(time=now + SAVE, step=step, stall_seconds=STALL, seconds=SAVE)
        elif step % run.checkpoint_every == 0:
            now, saved = now + STALL, step


def length(**settings: int) -> RunConfig:
    return RunConfig.model_validate({"directory": Path("run"), "steps": 100, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluate_every": 10, "checkpoint_every": 25},
        {"evaluate_every": 10, "checkpoint_every": 10, "log_every": 20},
        {"evaluate_every": 7, "checkpoint_every": 9, "log_every": 3},
        {"steps": 37, "evaluate_every": 1, "checkpoint_every": 1},
    ],
)
def test_the_time_left_counts_evaluations_and_saves_that_are_due(settings: dict[str, int]) -> None:
    run = length(**settings)
    events = list(events_of(run))
    end, pace, compared, told = events[-1].time, Pace(run), 0, list[type[Event]]()
    for number, event in enumerate(events[:-1]):
        pace.add([event])
        told.append(type(event))
        if not {EvaluationEvent, CheckpointEvent} <= set(told) or told.count(StepEvent) < 2:
            continue  # how long one takes is not known yet
        if isinstance(event, EvaluationEvent):
            continue
        if isinstance(events[number + 1], CheckpointEvent):
            continue  # a save that is not reported yet looks like a slow step
        assert pace.seconds_left() == pytest.approx(end - event.time, abs=STALL), event
        compared += 1
    assert compared > 3


def test_an_evaluation_does_not_change_what_is_left_after_it() -> None:
    """Steps alone, and then one evaluation: before, the forecast was thrown off by 45 s of it for each step."""
    run = length(evaluate_every=50)
    events = list(events_of(run))
    pace = Pace(run)
    for event in events:
        pace.add([event])
        if isinstance(event, StepEvent) and event.step == 49:
            assert pace.seconds_left() == 51 * STEP
        if isinstance(event, StepEvent) and event.step == 51:
            assert pace.seconds_left() == 49 * STEP + EVALUATION + SAMPLES
        if isinstance(event, SampleEvent) and event.step == 100:
            assert pace.seconds_left() == 0


def test_what_is_missing_of_an_evaluation_under_way_is_left() -> None:
    run = length(evaluate_every=50)
    events = list(events_of(run))
    half = next(place for place, event in enumerate(events) if isinstance(event, EvaluationEvent) and event.step == 100)
    pace = Pace(run)
    pace.add(events[: half + 1])
    assert pace.seconds_left() == EVALUATION / 2 + SAMPLES


def test_nothing_is_said_before_a_step_and_a_new_attempt_has_a_pace_of_its_own() -> None:
    run = length()
    pace = Pace(run)
    assert pace.seconds_left() is None
    pace.add([AttemptEvent(time=0.0, start_step=0)])
    assert pace.seconds_left() is None
    pace.add([StepEvent(time=10.0, step=1)])
    assert pace.seconds_left() == 990.0  # all that is known
    pace.add([StepEvent(time=12.0, step=2)])
    assert pace.seconds_left() == 98 * 2.0  # the first warms up
    pace.add([AttemptEvent(time=500.0, start_step=1)])
    assert pace.seconds_left() is None
    pace.add([StepEvent(time=501.0, step=2), StepEvent(time=505.0, step=3)])
    assert pace.seconds_left() == 97 * 4.0
