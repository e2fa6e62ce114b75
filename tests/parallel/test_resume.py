"""A run that is stopped and restarted on its layout equals, bit for bit, one that was not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode
from tests.datasets import make_dataset
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

STEPS = 6
ASKED = 12  # how many times an evaluation asks whether to stop

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-pp2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "dp2-dropout": {"parallel": {"data": 2}, "model": {"dropout": 0.1}},
    "dp2-zero2-bf16": {"parallel": {"data": 2, "zero_stage": 2}, "run": {"precision": "bf16"}},
    "tp2-bf16": {"parallel": {"tensor": 2}, "run": {"precision": "bf16"}},
    "pp2-bf16-adafactor": {
        "parallel": {"pipeline": 2},
        "run": {"precision": "bf16"},
        "model": {"width": 128, "head_dim": 32, "mlp_width": 128, "states": 128},
        "optimizer": {"name": "adafactor", "learning_rate": 0.03},
    },
    "one-zero0": {"parallel": {"zero_stage": 0}},
    "one-zero0-segments-of-a-window": {"parallel": {"zero_stage": 0}, "data": {"segment": 16}},  # unused weights
    "tp2-pp2-sequence-dropout-host": {
        "parallel": {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "stream_memory": "host"},
        "model": {"dropout": 0.1},
        "run": {"precision": "bf16"},
    },
    "dp2-zero3-bf16": {"parallel": {"data": 2, "zero_stage": 3}, "run": {"precision": "bf16"}},
    "tp2-dp2-zero3-sequence-recompute": {
        "parallel": {"tensor": 2, "data": 2, "zero_stage": 3, "sequence_parallel": True, "recompute": True},
    },
}

LONG = ("dp2-dropout", "tp2-bf16", "dp2-zero3-bf16")  # each part of them is in another case as well


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(4)
    make_dataset(folder, ["".join(draw.choices("abcdefgh \n", k=draw.randint(20, 700))) for _ in range(12)])
    return folder / "dataset"


def config(dataset: Path, run: Path, settings: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "layers": 3, "width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "window": 16, "states": 8,
            "recurrent_layers": (1,), "dropout": 0.0, "vocab_size": 256,
        },
        "data": {"dataset": dataset, "validation": dataset, "segment": 32, "streams": 4},
        "parallel": {"micro_batch": 1},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
        "run": {"directory": run, "steps": STEPS, "precision": "fp32", "checkpoint_every": 2, "evaluate_every": 3,
                "evaluation_steps": 2},
    }  # fmt: skip
    return Config.model_validate({name: section | settings.get(name, {}) for name, section in sections.items()})


def train(rank: int, store: str, given: Config, attempt: int, stop_after: int) -> tuple[int, list[str]]:
    """One attempt on one rank, asked to stop when it looks for the `stop_after`th time; exit code and messages."""
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    from brt_dist.training.build import build_trainer

    class StopAfter(StopFlag):
        def __init__(self) -> None:
            self.looks, self.agreed = 0, False

        @property
        def asked(self) -> bool:  # type: ignore[override]
            self.looks += 1
            return self.looks >= stop_after and rank == layout.world_size - 1  # one rank is asked, all stop

    run = Path(given.run.directory)
    events = EventLog(run, attempt, enabled=rank == 0)
    try:
        with Dataset.open(given.data.dataset) as data:
            trainer = build_trainer(given, run, layout, device, events, data, data, StopAfter())
            code = int(trainer.run())
            trainer.close()
            return code, []
    finally:
        events.close()
        finalize()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[pytest.mark.long] if name in LONG else [])
        for name, settings in LAYOUTS.items()
    ],
)
def test_resumed_run_is_bitwise_the_uninterrupted_run(
    ranks: RankPool, dataset: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight = config(dataset, tmp_path / "straight", settings)
    stopped = config(dataset, tmp_path / "stopped", settings)
    for given in (straight, stopped):
        Path(given.run.directory).mkdir()
    world = straight.parallel.world_size

    assert {code for code, _ in ranks.run(world, train, straight, 1, 99)} == {ExitCode.FINISHED}
    assert {code for code, _ in ranks.run(world, train, stopped, 1, 3)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(world, train, stopped, 2, 1)} == {ExitCode.PREEMPTED}  # skipped once more
    assert {code for code, _ in ranks.run(world, train, stopped, 3, ASKED + 1)} == {ExitCode.PREEMPTED}
    # in the evaluation after the last step: the run has not finished without it
    assert {code for code, _ in ranks.run(world, train, stopped, 4, STEPS - 4 + 2)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(world, train, stopped, 5, 99)} == {ExitCode.FINISHED}

    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens", "dataset", "memory")
    facts = [
        # the evaluation after step 3 was due at a stop, which skips it: the next attempt does it
        [{key: event[key] for key in keys if key in event} for event in events(given, "step", "evaluation")]
        for given in (straight, stopped)
    ]
    assert len(facts[0]) > STEPS
    assert facts[0] == facts[1]
    assert [event["start_step"] for event in events(stopped, "attempt")] == [0, 3, 3, 4, STEPS]
    same_tensors(Path(straight.run.directory), Path(stopped.run.directory))
    made_up = json.loads((Path(stopped.run.directory) / "checkpoints/step_00000003/manifest.json").read_text())
    assert not made_up["left_out"] and made_up["evaluations"] == {
        f"{event['dataset']}/{event['memory']}": event["bits_per_token"]
        for event in events(straight, "evaluation")
        if event["step"] == 3
    }


def finished(ranks: RankPool, given: Config) -> list[dict[str, Any]]:
    """Train to the end in one attempt; the events of steps and evaluations."""
    assert {code for code, _ in ranks.run(given.parallel.world_size, train, given, 1, 99)} == {ExitCode.FINISHED}
    return events(given, "step", "evaluation")


def events(given: Config, *kinds: str) -> list[dict[str, Any]]:
    lines = (Path(given.run.directory) / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] in kinds]


def same_tensors(one: Path, other: Path) -> None:
    """The last checkpoints hold the same weights, optimizer state, memory and cursor, bit for bit."""
    manifests = [json.loads((run / f"checkpoints/step_{STEPS:08d}/manifest.json").read_text()) for run in (one, other)]
    for manifest in manifests:
        assert {name.split("/")[0] for name in manifest["tensors"]} == {"weights", "optimizer", "memory"}
    for key in ("step", "updates", "tokens", "cursor", "files", "tensors", "evaluations", "left_out"):  # with sha256
        assert manifests[0][key] == manifests[1][key], key
