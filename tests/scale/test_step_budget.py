"""What a training step may cost besides its work: host reads, waiting for the device, collectives over all ranks.

Any of them makes every rank wait for the slowest, or leaves a device without work.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.event_log import EventLog
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.build import hooks_of_a_run
from brt_dist.training.hooks.base import Hook
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.loop import Trainer
from brt_dist.training.stopping import StopFlag
from brt_dist.training.trainer_state import TrainedStep
from tests.scale.accelerator import Event
from tests.scale.recorder import Recorder
from tests.scale.settings import small
from tests.scale.world import fake_world

# layout, precision, rank
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "dp8 zero0 fp32": ({"data": 8, "zero_stage": 0}, "fp32", 1),
    "dp8 zero1 fp32": ({"data": 8}, "fp32", 1),
    "dp8 zero1": ({"data": 8}, "bf16", 1),
    "dp8 zero2": ({"data": 8, "zero_stage": 2}, "bf16", 1),
    "tp2 dp4 sequence": ({"tensor": 2, "data": 4, "sequence_parallel": True}, "bf16", 1),
    "first of tp2 pp2 dp2": ({"tensor": 2, "pipeline": 2, "data": 2}, "bf16", 1),
    "last of tp2 pp2 dp2": ({"tensor": 2, "pipeline": 2, "data": 2}, "bf16", 7),
    "last of pp2 dp2 fp32": ({"pipeline": 2, "data": 2}, "fp32", 3),
}


def step_of(parallel: dict[str, Any], precision: str, rank: int) -> Recorder:
    """The third step, of three micro-batches."""
    config = small(parallel, precision, micro_batches=3)
    with fake_world(config, rank) as world, world.engine() as engine:
        for number in (1, 2):
            engine.train_step(world.inputs(number), 1e-3)
        with world.recorder(engine) as recorder:
            events = Event.made
            assert world.recorded_step(engine, recorder, 3).is_finite
            assert config.parallel.zero_stage == 3 or Event.made == events  # DeepSpeed's timers would keep them
    return recorder


@pytest.mark.parametrize("case", CASES)
def test_the_host_reads_once_and_never_waits(case: str) -> None:
    recorder = step_of(*CASES[case])
    assert [read.phase for read in recorder.host_reads] == ["control"]
    assert not recorder.synchronizations
    (agreement,) = [one for one in recorder.of("world") if one.op not in ("send", "recv")]
    assert (agreement.op, agreement.phase, agreement.bytes) == ("all_reduce", "control", 40)


def test_what_deepspeed_waits_for_under_zero_3() -> None:
    """It waits for its reduction after each backward and for its gathers after the update; it cannot be told not to."""
    recorder = step_of({"data": 8, "zero_stage": 3}, "bf16", 1)
    assert len(recorder.host_reads) <= 2
    files = [place.split(":")[0] for place in recorder.synchronizations]
    assert files == ["compute deepspeed/runtime/zero/stage3.py"] * 3 + [
        "update deepspeed/runtime/zero/partition_parameters.py"
    ]


class _Counting(Hook):
    """Counts what each whole step of the loop reads and waits for."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.reads: list[int] = []
        self.waits: list[int] = []

    def after_step(self, step: TrainedStep) -> None:
        self.reads.append(len(self._recorder.host_reads))
        self.waits.append(len(self._recorder.synchronizations))
        self._recorder.clear()


class _NoCheckpoints:
    def open_newest(self) -> None: ...

    def finished(self) -> list[Any]:
        return []


def test_the_loop_with_all_its_hooks_reads_no_more(tmp_path: Path) -> None:
    """Logging (every 8 steps here) waits for the device, to tell the time; nothing else does between."""
    config = small({"data": 4}, micro_batches=2, log_every=8)
    data: Any = InMemoryDataset([np.arange(500) % 64 for _ in range(16)], 64)
    schedule = StreamSchedule(data.lengths, streams=config.data.streams, segment=32, window=16, seed=0)
    store: Any = _NoCheckpoints()
    with fake_world(config, rank=1) as world, world.engine() as engine, world.recorder(engine) as recorder:
        events, counting = EventLog(tmp_path, 1, enabled=True), _Counting(recorder)
        hooks = hooks_of_a_run(engine, store, events, {"train": data}, Heartbeat(None), StopFlag())
        every_step = [hook for hook in hooks if type(hook).__name__ not in ("Evaluation", "Samples", "Checkpoints")]
        trainer = Trainer(
            engine, data, schedule, store, Adjustments(), StopFlag(), events, [*every_step, counting], print
        )  # fmt: skip
        trainer.train_until(7)
    assert counting.reads[2:] == [1] * 5 and counting.waits[2:] == [0] * 5
