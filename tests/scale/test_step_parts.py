"""Parts of a step as a run measures them: which there are in a layout, and that measuring waits for nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.event_log import EventLog, read_events
from brt_dist.events import PartsEvent, StepEvent
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.hooks.step_metrics import StepMetrics
from brt_dist.training.hooks.step_parts import StepParts
from brt_dist.training.loop import Trainer
from brt_dist.training.stopping import StopFlag
from tests.scale.settings import small
from tests.scale.world import FakeDevice, fake_world

WORK = {"forward", "backward", "update"}
CASES: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "one rank": ({}, "fp32", set()),
    "zero0": ({"data": 8, "zero_stage": 0}, "fp32", {"reduce", "agreement"}),
    "zero1 fp32": ({"data": 8}, "fp32", {"reduce", "gather", "agreement"}),
    "zero1": ({"data": 8}, "bf16", {"reduce", "gather", "agreement"}),
    "zero2": ({"data": 8, "zero_stage": 2}, "bf16", {"reduce", "gather", "agreement"}),
    "tensor": ({"tensor": 2}, "bf16", {"tensor", "agreement"}),
    "sequence": ({"tensor": 2, "sequence_parallel": True}, "bf16", {"tensor", "agreement"}),
    "pipeline": ({"pipeline": 2}, "bf16", {"pipeline", "reduce", "agreement"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_parts_of_a_step_are_those_of_its_layout(case: str) -> None:
    layout, precision, communication = CASES[case]
    config = small(layout, precision, micro_batches=3)
    with fake_world(config) as world, world.engine() as engine:
        engine.train_step(world.inputs(1), 1e-3)
        with engine.timed() as timer:
            assert engine.train_step(world.inputs(2), 1e-3).is_finite
        parts = timer.parts()
        assert "forward" not in vars(engine.stage)  # as before
        with world.recorder(engine) as recorder, engine.timed():
            world.recorded_step(engine, recorder, 3)
    assert set(parts) == WORK | communication
    assert min(parts.values()) >= 0 < parts["forward"] < sum(parts.values())
    assert [read.phase for read in recorder.host_reads] == ["control"] and not recorder.synchronizations


def test_logged_steps_tell_their_parts_ten_steps_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging waits for the device, in 12 steps; nothing waits a second time."""
    waits: list[str] = []
    monkeypatch.setattr(FakeDevice, "synchronize", lambda device: waits.append(device.kind))
    config = small({"data": 2}, log_every=2, steps=30)
    data: Any = InMemoryDataset([np.arange(500) % 64 for _ in range(16)], 64)
    schedule = StreamSchedule(data.lengths, streams=config.data.streams, segment=32, window=16, seed=0)
    store: Any = _NoCheckpoints()
    told = {}
    for rank in (0, 1):
        with fake_world(config, rank) as world, world.engine() as engine:
            (tmp_path / str(rank)).mkdir()
            events = EventLog(tmp_path / str(rank), 1, enabled=True)
            hooks = [StepMetrics(config, world.layout, world.device, events.write), StepParts(engine, events.write)]
            given = engine, data, schedule, store, Adjustments(), StopFlag(), events, hooks, print
            Trainer(*given).train_until(24)
        told[rank] = read_events(tmp_path / str(rank))
    assert len(waits) == 2 * 12
    steps = {event.step: event.step_seconds for event in told[0] if isinstance(event, StepEvent)}
    parts = {event.step: event.seconds for event in told[0] if isinstance(event, PartsEvent)}
    assert list(parts) == [2, 12, 22] and {"data", "other", *WORK} < set(parts[12])
    for step, seconds in parts.items():
        assert sum(seconds.values()) >= (steps[step] or 0)  # which ended a moment before
    assert not [event for event in told[1] if isinstance(event, PartsEvent)]


class _NoCheckpoints:
    def open_newest(self) -> None: ...
