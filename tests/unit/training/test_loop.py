"""What the loop decides and the order in which it calls hooks; model and checkpoints are stubs, the data is real."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brt_dist.config.schema import Config
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import DivergedError, ExitCode
from brt_dist.event_log import EventLog, read_events
from brt_dist.events import SkipEvent
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Asked, StepResult
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.run_directory import RunDirectory
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.hooks.base import Hook
from brt_dist.training.hooks.checkpoints import Checkpoints
from brt_dist.training.hooks.evaluation import Evaluation
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.hooks.number_guard import NumberGuard
from brt_dist.training.loop import Trainer
from brt_dist.training.stopping import StopFlag, Stopped, leave_if_asked
from brt_dist.training.trainer_state import TrainedStep, TrainerState

STEPS = 4
NAN = StepResult(float("nan"), float("inf"))


class Tokens:
    """Two documents in memory, with what the loop asks of a dataset."""

    tokenizer_sha256 = "none"
    lengths = np.array([200, 300], np.int64)

    def length(self, document: int) -> int:
        return int(self.lengths[document])

    def tokens(self, document: int, offset: int, count: int) -> Any:
        return np.arange(offset, min(offset + count, self.length(document)))


class StubEngine:
    """Returns the results that it was given."""

    def __init__(self, config: Config, device: Device, results: list[StepResult], log: list[str]) -> None:
        self.config, self.device, self.layout = config, device, Layout.of(config, 0)
        self._results, self._log = results, log
        self.rates: list[float] = []

    def draw(self) -> None:
        self._log.append("draw")

    def train_step(self, step: StepInput, learning_rate: float, asked: Asked) -> StepResult:
        self._log.append(f"train {step.number}")
        self.rates.append(learning_rate)
        return replace(self._results[step.number - 1], asked_to_stop=asked())


class StubStore:
    """Notes what is saved."""

    def __init__(self) -> None:
        self.saves: list[tuple[int, int]] = []

    def open_newest(self) -> None: ...

    def save(self, step: int, tokens: int, *_: Any) -> float:
        self.saves.append((step, tokens))
        return 0.0

    def finished(self) -> list[Any]:
        return []

    def wait(self) -> None: ...


class Noting(Hook):
    """Notes its calls; asks to stop, or ends the run, after a step."""

    def __init__(self, name: str, log: list[str], ends_at: int | None = None) -> None:
        self._name, self._log, self._ends_at = name, log, ends_at

    def on_start(self, state: TrainerState) -> None:
        self._log.append(f"{self._name} start {state.step}")

    def around_step(self, number: int) -> AbstractContextManager[None]:
        return self._around(number)

    @contextmanager
    def _around(self, number: int) -> Iterator[None]:
        self._log.append(f"{self._name} enter {number}")
        yield
        self._log.append(f"{self._name} leave {number}")

    def after_step(self, step: TrainedStep) -> None:
        self._log.append(f"{self._name} after {step.number}{' first' if step.is_first else ''}")
        if step.number == self._ends_at:
            raise DivergedError("as told")

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        self._log.append(f"{self._name} between {state.step}{' last' if is_last else ''}")

    def on_end(self) -> None:
        self._log.append(f"{self._name} end")


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with single_process() as found:
        yield found


class Case:
    """A trainer of stubs, and what was noted."""

    def __init__(self, device: Device, run: Path, results: list[StepResult] | None = None, **parts: Any) -> None:
        self.log: list[str] = []
        self.config = Config.model_validate(
            {
                "model": {"layers": 1, "window": 16, "vocab_size": 512, "recurrent_layers": []},
                "data": {"dataset": "unused", "segment": 32, "streams": 2},
                "parallel": {"micro_batch": 1},
                "optimizer": {"learning_rate": 1.0, "warmup_steps": 10},
                "run": {"directory": run, "steps": parts.pop("steps", STEPS), "checkpoint_every": 3,
                        "guards": parts.pop("guards", {})},
            }
        )  # fmt: skip
        data: Any = Tokens()
        schedule = StreamSchedule(data.lengths, streams=2, segment=32, window=16, seed=0)
        self.engine: Any = StubEngine(self.config, device, results or [StepResult(2.0, 1.0)] * STEPS, self.log)
        self.store: Any = StubStore()
        self.stop = StopFlag()
        self.events = EventLog(run, 1, enabled=True)
        self.trainer = Trainer(
            self.engine, data, schedule, self.store, parts.pop("adjustments", Adjustments()), self.stop, self.events,
            hooks=[], report=self.log.append,
        )  # fmt: skip

    def hooks(self, *hooks: Hook) -> Trainer:
        self.trainer.hooks = hooks
        return self.trainer

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.store, self.engine, self.events.write, Heartbeat(None))


def test_hooks_are_called_in_their_order(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path, steps=2)
    assert case.hooks(Noting("a", case.log), Noting("b", case.log)).run() is ExitCode.FINISHED
    expected = """
        draw, a start 0, b start 0,
        a enter 1, b enter 1, train 1, b leave 1, a leave 1, a after 1 first, b after 1 first, a between 1, b between 1,
        a enter 2, b enter 2, train 2, b leave 2, a leave 2, a after 2, b after 2, a between 2 last, b between 2 last,
        a end, b end
    """
    assert case.log == [one.strip() for one in expected.split(",")]


def test_a_hook_ends_the_run_before_the_next_hook_sees_the_step(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path)
    trainer = case.hooks(Noting("a", case.log, ends_at=2), Noting("b", case.log), case.checkpoints())
    with pytest.raises(DivergedError, match="as told"):
        trainer.run()
    assert case.log[-1] == "a after 2" and "b end" not in case.log
    assert not case.store.saves


def test_a_divergence_is_not_saved(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path, [StepResult(2.0, 1.0), StepResult(2.0, 1.0), NAN, StepResult(2.0, 1.0)])
    guard = NumberGuard(case.config.run.guards, case.events.write)
    with pytest.raises(DivergedError, match="step 3"):
        case.hooks(guard, case.checkpoints()).run()
    assert not case.store.saves  # step 3 was due


def test_a_step_that_is_left_out_moves_the_rate_and_the_streams_but_trains_nothing(
    device: Device, tmp_path: Path
) -> None:
    straight = Case(device, tmp_path).hooks()
    straight.run()
    case = Case(device, tmp_path, adjustments=Adjustments().without(2, 2).slower(4, 0.5))
    trainer = case.hooks(Noting("a", case.log), case.checkpoints())
    trainer.run()
    assert case.engine.rates == pytest.approx([0.1, 0.3, 0.2])  # of steps 1, 3 and 4
    assert [one for one in case.log if one.startswith("train")] == ["train 1", "train 3", "train 4"]
    assert "a between 2" in case.log and "a after 2" not in case.log
    assert trainer.state.step == STEPS
    assert trainer.state.cursor.to_json() == straight.state.cursor.to_json()
    assert trainer.state.tokens == straight.state.tokens * 3 // 4


def test_a_gradient_that_is_not_finite_is_a_step_without_tokens(device: Device, tmp_path: Path) -> None:
    results = [StepResult(2.0, 1.0), NAN, StepResult(2.0, 1.0), StepResult(2.0, 1.0)]
    case = Case(device, tmp_path, results, guards={"nonfinite": "skip"})
    trainer = case.hooks(NumberGuard(case.config.run.guards, case.events.write), case.checkpoints())
    assert trainer.run() is ExitCode.FINISHED
    assert case.engine.rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    per_step = 2 * 32
    assert case.store.saves == [(3, 2 * per_step), (4, 3 * per_step)]
    (skip,) = [event for event in read_events(tmp_path) if isinstance(event, SkipEvent)]
    assert (skip.step, skip.why) == (2, "not finite")


def test_a_stop_that_was_asked_for_saves_and_ends_after_the_step(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path)
    case.stop.asked = True
    trainer = case.hooks(case.checkpoints(), Noting("a", case.log))
    assert trainer.run() is ExitCode.PREEMPTED
    assert case.log[-2:] == ["a between 1 last", "a end"]
    assert case.store.saves == [(1, 64)]


def test_a_stop_in_the_last_step_is_the_end(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path)
    case.stop.asked = True
    case.trainer.state.step = STEPS - 1
    assert case.hooks(case.checkpoints()).train_until(STEPS) is ExitCode.FINISHED
    assert case.store.saves == [(STEPS, 64)]


def test_a_run_that_is_done_trains_nothing(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path)
    case.trainer.state.step = STEPS
    assert case.hooks(case.checkpoints(), Noting("a", case.log)).train_until(STEPS) is ExitCode.FINISHED
    assert case.log == ["a end"] and not case.store.saves


class Leaving(Hook):
    """An evaluation that a rank is asked to stop in, after a step."""

    def __init__(self, stop: StopFlag, device: Device, at: int) -> None:
        self._stop, self._device, self._at = stop, device, at

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        if state.step == self._at:
            self._stop.asked = True
            with pytest.raises(Stopped):
                leave_if_asked(self._stop, self._device)


def test_a_stop_within_an_evaluation_is_obeyed_before_the_next_step(device: Device, tmp_path: Path) -> None:
    case = Case(device, tmp_path)
    case.trainer.hooks = [Leaving(case.stop, device, 2), Noting("a", case.log)]
    assert case.trainer.run() == ExitCode.PREEMPTED
    assert case.log[-2:] == ["a between 2 last", "a end"] and "train 3" not in case.log


def test_an_evaluation_is_left_between_two_segments(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, seen = Case(device, tmp_path), []

    def evaluate(*given: Any) -> Any:
        between = given[-1]
        for number in range(1, 60):
            between(number)
            seen.append(number)
            case.stop.asked = number == 2

    monkeypatch.setattr("brt_dist.training.hooks.evaluation.evaluate", evaluate)
    told: list[Any] = []
    heartbeat = Heartbeat(RunDirectory(tmp_path).attempt(1))
    hook = Evaluation(case.engine, {"train": None, "validation": None}, told.append, heartbeat, case.stop)  # type: ignore[dict-item]
    hook.between_steps(TrainerState(case.trainer.state.cursor, STEPS), is_last=False)
    assert (seen, told, case.stop.agreed) == ([1, 2], [], True)
    found = json.loads(RunDirectory(tmp_path).attempt(1).heartbeat.read_text())
    assert found["phase"] == "evaluating"
    heartbeat._written = 0.0
    heartbeat.part("train, segment 3 of 60")
    again = json.loads(RunDirectory(tmp_path).attempt(1).heartbeat.read_text())
    assert again == {**found, "detail": "train, segment 3 of 60"}, "the phase began when it began"
