"""Events as they are written and read back, and those that an older version wrote."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist import events
from brt_dist.event_log import EventLog, EventReader, events_of, read_events
from brt_dist.events import (
    AttemptEvent,
    CheckpointEvent,
    DivergedEvent,
    DriftEvent,
    EndEvent,
    EvaluationEvent,
    Event,
    HeldEvent,
    IgnoredStateEvent,
    LayerStatistics,
    LayoutSizes,
    MemoryEvent,
    MessageEvent,
    PartsEvent,
    Plan,
    PositionLoss,
    RankSizes,
    Sample,
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StartEvent,
    StepEvent,
    StragglerEvent,
    SystemEvent,
    from_json,
    line_of,
    parse,
)

OLD = Path(__file__).parents[1] / "data" / "metrics_0_1_0.jsonl"

PLAN = Plan(
    parameters=1234,
    ranks=4,
    fullest_rank=RankSizes(500, 2_000, 6_000, 700),
    tokens_per_step=64,
    flops_per_step=1.5e9,
)
ONE_OF_EACH: tuple[Event, ...] = (
    AttemptEvent(
        world_size=4, layout=LayoutSizes(2, 1, 2, 1, 8), start_step=3, device="cpu", flops_per_token=5.5, plan=PLAN
    ),
    StartEvent(step=4, seconds={"launcher": 1.5, "importing DeepSpeed": 3.25}),
    StepEvent(
        step=4,
        loss=1.25,
        bits_per_token=1.8,
        grad_norm=0.5,
        learning_rate=1e-3,
        tokens=256,
        tokens_per_second=1000.5,
        step_seconds=0.25,
        data_wait_seconds=0.01,
        peak_memory_bytes=1 << 40,
        mfu=0.4,
    ),
    PartsEvent(step=4, seconds={"forward": 0.0625, "tensor": 0.5}),
    EvaluationEvent(
        step=4,
        dataset="validation",
        memory="carried",
        loss=1.5,
        bits_per_token=2.1,
        tokens=100,
        positions=(PositionLoss(0, 16, 2.0, 60), PositionLoss(16, None, 1.0, 40)),
        layers=(LayerStatistics(1, {"from_states": 0.3}),),
        seconds=0.5,
    ),
    SampleEvent(step=4, samples=(Sample(3, "Once upon", " a time\n\u2028\x00"),)),
    CheckpointEvent(step=4, path="checkpoints/step_00000004", seconds=0.5, stall_seconds=0.01, bytes=10),
    MemoryEvent(step=4, layers=(LayerStatistics(1, {"state_rms": 0.5, "kept": 0.9}), LayerStatistics(2, {}))),
    HeldEvent(step=1, parameters=500, weights=2_000, optimizer=6_000, carried=700),
    SkipEvent(step=5, why="not finite", loss="nan", grad_norm="inf"),
    SpikeEvent(step=6, quantity="loss", loss=9.0, median=2.0),
    DivergedEvent(step=7, loss="nan", grad_norm="nan"),
    StragglerEvent(step=8, rank=3, host="node", seconds=2.0, median_seconds=1.0),
    DriftEvent(step=8, weight="final_norm.weight", ranks=(1,), others=(0, 2, 3)),
    IgnoredStateEvent(step=8, dataset="validation", bits=-0.0002, least=0.001),
    MessageEvent(message="resumed after step 3"),
    EndEvent(status="finished", exit_code=0),
    SystemEvent(values={"cpu_utilization_percentage": 12.5, "gpu_0_power_usage_watts": 300.0}),
)


def test_every_kind_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert [type(event) for event in ONE_OF_EACH] == list(events._KINDS.values())
    log = EventLog(tmp_path, attempt=7, enabled=True)
    for event in ONE_OF_EACH:
        log.write(event)
    log.close()
    found = read_events(tmp_path)
    assert all(event.time > 1.7e9 and event.attempt == 7 for event in found)
    assert tuple(dataclasses.replace(event, time=0.0, attempt=None) for event in found) == ONE_OF_EACH
    assert events_of(tmp_path, SkipEvent) == [event for event in found if isinstance(event, SkipEvent)]


@settings(max_examples=50)
@given(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(), st.text())
def test_numbers_and_text_survive(number: int, value: float, text: str) -> None:
    events = (StepEvent(step=number, loss=value), MessageEvent(message=text))
    step, message = (parse(line_of(event)) for event in events)
    assert message == events[1] and isinstance(step, StepEvent) and step.step == number
    assert step.loss == value or (math.isnan(value) and step.loss is not None and math.isnan(step.loss))


def test_the_file_of_an_older_version_is_read_and_written_the_same() -> None:
    """It holds what a run of version 0.1.0 wrote, with guards that told something."""
    lines = OLD.read_bytes().splitlines(keepends=True)
    found = [parse(line) for line in lines]
    assert [line_of(event) for event in found if event is not None] == lines
    attempt, *_ = found
    assert isinstance(attempt, AttemptEvent) and attempt.plan is not None
    assert (attempt.layout, attempt.plan.fullest_rank.optimizer) == (LayoutSizes(1, 1, 1, 2, 4), 503568)
    assert [event.step for event in found if isinstance(event, StepEvent)] == [1, 2, 3]
    evaluations = [event for event in found if isinstance(event, EvaluationEvent)]
    assert [(event.dataset, event.memory) for event in evaluations] == [
        (dataset, memory) for dataset in ("train", "validation") for memory in ("carried", "cleared")
    ]
    assert [(one.begin, one.end) for one in evaluations[0].positions[:2]] == [(0, 16), (16, 32)]
    (memory,) = (event for event in found if isinstance(event, MemoryEvent))
    assert memory.layers[0].values.keys() == {"state_rms", "state_max", "kept"}
    kinds = {type(event) for event in found}
    assert kinds == {*events._KINDS.values()} - {SystemEvent, StartEvent, PartsEvent, DriftEvent, IgnoredStateEvent}


def test_what_is_not_known_is_ignored_and_what_is_missing_has_its_default() -> None:
    assert from_json({"event": "new kind", "step": 1}) is None
    assert from_json({"event": "step", "step": 1, "new": [1]}) == StepEvent(step=1)
    assert from_json({"event": "attempt", "layout": {"tensor": 2, "new": 1}, "plan": {"parameters": 1}}) == (
        AttemptEvent(layout=LayoutSizes(tensor=2))
    )


@pytest.mark.parametrize("value", ["text", True, [1], None, {}, 1.5])
def test_a_field_of_another_type_counts_as_missing(value: object) -> None:
    assert from_json({"event": "step", "step": 1, "tokens": value}) == StepEvent(step=1)
    assert from_json({"event": "step", "step": value}) is None


def test_each_kind_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(OLD.read_bytes())
    reader = EventReader(tmp_path, kinds=(AttemptEvent, EndEvent))
    assert [type(event) for event in reader.read()] == [AttemptEvent, EndEvent]
    assert reader.offset == len(OLD.read_bytes()) and reader.read() == []


def test_events_follow_a_line_that_a_killed_attempt_cut(tmp_path: Path) -> None:
    first = EventLog(tmp_path, attempt=1, enabled=True)
    first.write(StepEvent(step=1, loss=2.5))
    first.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"event": "step", "st')
    second = EventLog(tmp_path, attempt=2, enabled=True)
    second.write(StepEvent(step=2, loss=2.25))
    second.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(lines[0]), json.loads(lines[2])]
    assert [(e["event"], e["attempt"], e["step"], e["loss"]) for e in found] == [
        ("step", 1, 1, 2.5),
        ("step", 2, 2, 2.25),
    ]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path, attempt=1, enabled=False)
    log.write(StepEvent(step=1))
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()
