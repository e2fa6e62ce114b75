"""Whole runs of a worker on a GPU: against the CPU, and resumed."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from brt_dist.event_log import events_of
from brt_dist.events import EvaluationEvent, StepEvent
from brt_dist.run_directory import RunDirectory
from tests.datasets import make_dataset
from tests.ports import free_port

MODEL: dict[str, Any] = {
    "layers": 3, "width": 128, "heads": 4, "head_dim": 32, "window": 64, "dropout": 0.0,
    "mixers": {"window": {}, "recurrent": {"layers": [1], "states": 64}}, "ffns": {"relu": {"width": 256}},
}  # fmt: skip
STEPS = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(4)
    make_dataset(folder, ["".join(draw.choices("abcdefgh \n", k=draw.randint(500, 9000))) for _ in range(12)])
    return folder / "dataset"


def train(run: Path, dataset: Path, settings: dict[str, Any], device: str, steps: int = STEPS) -> dict[str, float]:
    """Train to step `steps`, and return the loss of all steps and evaluations so far."""
    values = {
        "model": MODEL | settings.get("model", {}),
        "data": {"dataset": str(dataset), "validation": str(dataset), "segment": 256, "streams": 4},
        "parallel": {"micro_batch": 2} | settings.get("parallel", {}),
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "warmup_steps": 2, "schedule": "constant"}
        | settings.get("optimizer", {}),
        "run": {"directory": str(run), "steps": steps, "device": device, "evaluate_every": 4,
                "evaluation_steps": 4} | settings.get("run", {}),
    }  # fmt: skip
    run.mkdir(exist_ok=True)
    RunDirectory(run).config.write_text(yaml.safe_dump(values))
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "brt_dist.worker", str(run)],
        env={**os.environ, **ranks, "MASTER_PORT": str(free_port())},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps_of = {f"step {event.step}": event.loss for event in events_of(run, StepEvent)}
    return steps_of | {
        f"{event.dataset} {event.memory} after step {event.step}": event.loss or 0.0
        for event in events_of(run, EvaluationEvent)
    }


def test_float32_on_the_gpu_is_the_cpu(tmp_path: Path, dataset: Path) -> None:
    settings = {"run": {"precision": "fp32"}}
    on_cpu = train(tmp_path / "cpu", dataset, settings, "cpu")
    on_gpu = train(tmp_path / "gpu", dataset, settings, "cuda")
    assert len(on_cpu) > STEPS
    assert on_gpu == pytest.approx(on_cpu, rel=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"run": {"precision": "bf16"}},
        {"run": {"precision": "bf16"}, "model": {"dropout": 0.1}, "parallel": {"stream_memory": "host"}},
        {"run": {"precision": "bf16"}, "optimizer": {"name": "adafactor", "learning_rate": 0.03}},
        {"run": {"precision": "fp32"}, "parallel": {"recompute": "attention"}},
    ],
    ids=["bf16", "bf16-dropout-host", "bf16-adafactor", "fp32-recompute"],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, dataset: Path, settings: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", dataset, settings, "cuda")
    train(tmp_path / "parts", dataset, settings, "cuda", steps=STEPS // 2)
    parts = train(tmp_path / "parts", dataset, settings, "cuda")
    assert parts == whole
    ones, others = (tensors(tmp_path / name) for name in ("whole", "parts"))
    assert ones.keys() == others.keys()
    assert [name for name in ones if not torch.equal(ones[name], others[name])] == []


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All of the newest checkpoint."""
    newest = max(path for path in RunDirectory(run).checkpoints.iterdir() if path.is_dir())
    return {
        f"{path.relative_to(newest)}/{name}": tensor
        for path in sorted(newest.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
