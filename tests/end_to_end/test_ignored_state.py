"""Two small runs: one whose text needs the state and one whose text does not; only the second gets a warning."""

import random
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.event_log import EventLog, events_of
from brt_dist.events import EvaluationEvent, IgnoredStateEvent, MessageEvent
from brt_dist.parallel.layout import Layout, single_process
from tests.datasets import make_dataset

pytestmark = pytest.mark.slow

WINDOW, STEPS = 8, 200


def with_a_key(draw: random.Random) -> str:
    """A letter in the first window, asked for in the last one, about ten windows later; coin tosses between."""
    blocks = [draw.choices("xy", k=WINDOW) for _ in range(draw.randint(10, 13))]
    key = draw.choice("ABCDEFGH")
    blocks[0][draw.randrange(2, WINDOW)] = key
    at = draw.randrange(WINDOW - 2)
    blocks[-1][at : at + 2] = ["?", key]
    return "".join("".join(block) for block in blocks)


def of_neighbours(draw: random.Random) -> str:
    """Each letter follows from the one before it, except for coin tosses: there is nothing to remember."""
    text = "a"
    while len(text) < 11 * WINDOW:
        text += {"a": "bc", "b": "ca", "c": "ab"}[text[-1]][draw.random() < 0.3]
    return text


def trained(folder: Path, document: Any) -> Path:
    """The run directory of a run on such documents."""
    from brt_dist.data.dataset import Dataset
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    places = {}
    for seed, (name, count) in enumerate({"train": 1500, "held_out": 40}.items()):
        draw = random.Random(seed)
        places[name] = make_dataset(folder / name, [document(draw) for _ in range(count)]).folder
    given = Config.model_validate(
        {
            "model": {
                "layers": 2, "width": 32, "heads": 2, "head_dim": 16, "window": WINDOW, "dropout": 0.0,
                "vocab_size": 256, "ffns": {"relu": {"width": 64}},
                "mixers": {"window": {}, "recurrent": {"layers": [1], "states": 4}},
            },
            "data": {"dataset": places["train"], "validation": places["held_out"], "segment": 2 * WINDOW,
                     "streams": 32},
            "parallel": {"micro_batch": 32, "zero_stage": 0},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 20, "clip_norm": 1.0},
            "run": {
                "directory": folder / "run", "steps": STEPS, "precision": "fp32", "device": "cpu",
                "checkpoint_every": 1000, "memory_every": 50,
            },
        }
    )  # fmt: skip
    run = Path(given.run.directory)
    run.mkdir()
    with single_process() as device, Dataset.open(places["train"]) as train, Dataset.open(places["held_out"]) as held:
        events = EventLog(run, 1, enabled=True)
        trainer = build_trainer(given, run, Layout.of(given, 0), device, events, train, held, StopFlag())
        trainer.run()
        trainer.close()
        events.close()
    return run


def worth_of_state(run: Path) -> float:
    """Bits per token of held-out text that are lost by clearing the state."""
    bits = {
        event.memory: event.bits_per_token or 0
        for event in events_of(run, EvaluationEvent)
        if event.dataset == "validation"
    }
    return bits["state cleared"] - bits["carried"]


def test_a_state_that_is_used_is_not_warned_of(tmp_path: Path) -> None:
    run = trained(tmp_path, with_a_key)
    assert worth_of_state(run) > 0.005
    assert not events_of(run, IgnoredStateEvent)
    seen = [event for event in events_of(run, EvaluationEvent) if event.layers]
    assert [(event.dataset, event.memory) for event in seen] == [("validation", "carried")]
    assert seen[0].layers[0].layer == 1 and 0.1 < seen[0].layers[0].values["from_states"] < 1


def test_a_state_that_is_ignored_is_warned_of(tmp_path: Path) -> None:
    run = trained(tmp_path, of_neighbours)
    (warning,) = events_of(run, IgnoredStateEvent)
    assert warning.step == STEPS and warning.dataset == "validation" and warning.least == 0.001
    assert warning.bits is not None and warning.bits < 0.001
    assert [message for message in events_of(run, MessageEvent) if "ignores its state" in message.message]
