"""Guards of one rank: numbers that are not finite, spikes, stragglers, signs of life."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.guards import GuardsConfig
from brt_dist.config.schema import ModelConfig
from brt_dist.errors import DivergedError
from brt_dist.evaluation.evaluate import EvaluationResult
from brt_dist.events import Event, to_json
from brt_dist.parallel.engine import StepResult
from brt_dist.run_directory import AttemptDirectory
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.hooks.number_guard import NumberGuard
from brt_dist.training.hooks.state_guard import StateGuard, worth_of_state
from brt_dist.training.hooks.stragglers import stragglers


class Told(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: Event) -> None:
        fields = json.loads(json.dumps(to_json(event), allow_nan=False))  # every event is plain JSON
        self.append((fields.pop("event"), {key: value for key, value in fields.items() if key != "time"}))


def guard(**settings: Any) -> tuple[NumberGuard, Told]:
    told = Told()
    return NumberGuard(GuardsConfig.model_validate(settings), told), told


NAN = StepResult(math.nan, math.inf)
GOOD = StepResult(2.0, 1.0)


def test_not_finite_ends_the_run() -> None:
    watch, told = guard()
    watch.check(GOOD, 1)
    with pytest.raises(DivergedError, match="step 2: loss nan, gradient norm inf"):
        watch.check(NAN, 2)
    assert told == [("diverged", {"step": 2, "loss": "nan", "grad_norm": "inf"})]


def test_updates_may_be_left_out_but_not_too_many_in_a_row() -> None:
    watch, told = guard(nonfinite="skip", most_skips=2)
    for step, result in enumerate((NAN, NAN, GOOD, NAN, NAN), 1):
        watch.check(result, step)
    assert [(name, fields["step"]) for name, fields in told] == [("skip", s) for s in (1, 2, 4, 5)]
    with pytest.raises(DivergedError, match="3 updates in a row"):
        watch.check(NAN, 6)


def test_a_spike_is_told_and_the_usual_is_not() -> None:
    watch, told = guard(spike_window=20, spike_deviations=10)
    for step in range(1, 41):
        watch.check(StepResult(2.0 + 0.1 * math.sin(step), 1.0), step)
    assert not told
    watch.check(StepResult(5.0, 1.0), 41)
    ((name, fields),) = told
    assert name == "spike" and (fields["step"], fields["quantity"], fields["loss"]) == (41, "loss", 5.0)
    assert fields["median"] == pytest.approx(2.0, abs=0.1)
    watch.check(StepResult(2.0, 50.0), 42)
    assert told[-1][1]["quantity"] == "grad_norm"


def test_a_spike_may_end_the_run() -> None:
    watch, told = guard(on_spike="stop", spike_window=10)
    for step in range(1, 11):
        watch.check(GOOD, step)
    watch.check(StepResult(2.0, 100.0), 11)  # of the norm alone: clipping is there for that
    with pytest.raises(DivergedError, match="step 12: loss 9; the median of the last 10 steps was 2"):
        watch.check(StepResult(9.0, 1.0), 12)
    assert told[-1][0] == "diverged"


def test_the_first_steps_are_no_measure() -> None:
    watch, told = guard()
    for step, loss in enumerate((9.0, 2.0, 30.0), 1):
        watch.check(StepResult(loss, 1.0), step)
    off, nothing = guard(spike_window=0)
    for step in range(1, 50):
        off.check(StepResult(1.0 if step < 49 else 100.0, 1.0), step)
    assert not told and not nothing


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0, 1.0, 1.1, 2.0], {3}),
        ([1.0, 2.0], {1}),
        ([2.0, 2.0, 1.0, 2.1], set()),
        ([0.001, 0.002], set()),  # noise
        ([1.0], set()),
    ],
)
def test_stragglers(seconds: list[float], expected: set[int]) -> None:
    assert stragglers(seconds, 1.5) == expected


def test_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "a" / "heartbeat.json"
    heart = Heartbeat(AttemptDirectory(path.parent))
    assert json.loads(path.read_text())["phase"] == "starting"
    for _ in range(3):
        heart.beat()
    assert json.loads(path.read_text())["phase"] == "training"
    heart.slow("saving")
    found = json.loads(path.read_text())
    assert found["phase"] == "saving" and 0 <= found["step_seconds"] < 1 and found["time"] <= time.time()
    heart.beat()
    assert json.loads(path.read_text())["phase"] == "training"
    Heartbeat(None).beat()


def state_guard(**settings: Any) -> tuple[StateGuard, Told]:
    told = Told()
    return StateGuard(GuardsConfig.model_validate(settings), told), told


def test_an_ignored_state_is_told_after_three_evaluations_in_a_row() -> None:
    watch, told = state_guard(state_bits=0.01)
    for step, bits in enumerate((0.0, -0.1, 0.02, 0.009, None, 0.0, 0.0, 0.0, 0.0), 1):
        watch.check(step, False, "validation", bits)
    (name, fields), (message, said) = told
    assert (name, fields) == (
        "ignored_state",
        {"step": 7, "dataset": "validation", "bits": 0.0, "least": 0.01},
    )
    assert message == "message" and "ignores its state" in said["message"] and "0.0000 bits/token" in said["message"]


def test_at_the_end_of_a_run_one_evaluation_is_enough() -> None:
    for bits, count in ((0.0, 2), (0.02, 0)):
        watch, told = state_guard(state_bits=0.01)
        watch.check(9, True, "validation", bits)
        assert len(told) == count
    watch, told = state_guard(state_bits=0)
    watch.check(9, True, "validation", 0.0)
    assert not told


def result(bits: float, carried: int = 50) -> EvaluationResult:
    return EvaluationResult(bits * math.log(2), tokens=100, carried_tokens=carried)


@pytest.mark.parametrize(
    ("mixers", "found", "worth"),
    [
        # 0.25 bits over all tokens, half of them read with carried memory
        ({"recurrent": {"layers": [1]}, "window": {}}, {"carried": 1.0, "cleared": 2.0, "state cleared": 1.25}, 0.5),
        ({"recurrent": {"layers": [1]}, "window": {}}, {"carried": 1.0, "cleared": 2.0}, None),  # not evaluated
        ({"lstm": {}}, {"carried": 1.0, "cleared": 1.5}, 1.0),  # a state and nothing else
        ({"window": {}}, {"carried": 1.0, "cleared": 1.5}, None),
    ],
)
def test_worth_of_the_state(mixers: dict[str, Any], found: dict[Any, float], worth: float | None) -> None:
    model = ModelConfig.model_validate({"layers": 2, "mixers": mixers})
    got = worth_of_state(model, {use: result(bits) for use, bits in found.items()})
    assert got == pytest.approx(worth)
    short = {use: result(bits, carried=0) for use, bits in found.items()}  # no document goes over a segment
    assert worth_of_state(model, short) is None
