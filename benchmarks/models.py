"""Shared by the comparisons: models of equal size, trained as `brt train` does, and outside their engine."""

from pathlib import Path
from typing import Any

import torch

from brt_dist.config.loading import dump
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.dataset import Dataset
from brt_dist.event_log import EventLog
from brt_dist.files import write_atomic
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import load
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.layout import Layout
from brt_dist.training.build import build_trainer
from brt_dist.training.stopping import StopFlag


def cpu_run(
    mixers: dict[str, Any], layers: int, width: int, vocabulary: int, seed: int, steps: int, **data: Any
) -> Config:
    """A run of a small model in fp32 on one CPU.

    Args:
        mixers: `model.mixers`.
        data: segment, streams, window, learning_rate; for text also dataset, validation and directory.
    """
    return Config.model_validate(
        {
            "model": {
                "layers": layers, "width": width, "heads": width // 16, "head_dim": 16, "window": data["window"],
                "vocab_size": vocabulary, "mixers": mixers, "dropout": 0.0, "ffns": {"relu": {"width": 4 * width}},
            },
            "data": {
                "dataset": data.get("dataset", "none"), "validation": data.get("validation"),
                "segment": data["segment"], "streams": data["streams"],
            },
            "parallel": {"micro_batch": data["streams"], "zero_stage": 0},
            "optimizer": {
                "learning_rate": data["learning_rate"], "warmup_steps": min(20, steps // 2), "clip_norm": 1.0,
            },
            "run": {
                "directory": data.get("directory", "none"), "steps": steps, "precision": "fp32", "seed": seed,
                "device": "cpu", "evaluation_steps": 1, "evaluate_parts": False, "evaluate_training": False,
                "memory_every": 0, "checkpoint_every": 100, "keep_checkpoints": 1, "keep_best": 0,
            },
        }
    )  # fmt: skip


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model, token embedding included; nothing is allocated.  Needs process groups of one."""
    with torch.device("meta"):
        return sum(p.numel() for p in BlockRecurrentModel(config).parameters())


def with_parameters(config: ModelConfig, count: int) -> ModelConfig:
    """`config` with the width of the MLP that brings its size nearest to `count` parameters.

    ValueError: without an MLP it would have more already.
    """
    narrow, wide = (parameter_count(_with_width(config, width)) for width in (1, 2))
    width = 1 + round((count - narrow) / (wide - narrow))  # the size is linear in the width
    if width < 1:
        raise ValueError(f"{count} parameters are too few: without an MLP it has {2 * narrow - wide}")
    return _with_width(config, width)


def mlp_width(config: ModelConfig) -> int:
    """Width of the MLP of all layers."""
    return int(config.model_dump()["ffns"]["relu"]["width"])


def _with_width(config: ModelConfig, width: int) -> ModelConfig:
    cells = [f"mixers.{name}.mlp_width" for name in config.mixers if name == "recurrent"]
    return config.changed(dict.fromkeys(["ffns.relu.width", *cells], width))


def trained_model(engine: Engine) -> BlockRecurrentModel:
    """The model with the weights that an engine of one process has now."""
    model, weights = BlockRecurrentModel(engine.config.model), engine.weights()
    load(model, {parameter.name: parameter.whole([weights[parameter.name]]) for parameter in engine.parameters})
    return model.eval()


def train_run(config: Config, train: Dataset, validation: Dataset, device: Device) -> tuple[BlockRecurrentModel, int]:
    """Train in this process with the loop of `brt train`, from the newest checkpoint on if there is one.

    Returns:
        The model, and the tokens that it was trained on.
    """
    run = config.run.directory
    check(config)
    Path(run).mkdir(parents=True, exist_ok=True)
    write_atomic(run / "config.yaml", dump(config))
    events = EventLog(run, 1, enabled=True)
    trainer = build_trainer(config, run, Layout.of(config, 0), device, events, train, validation, StopFlag())
    try:
        trainer.run()
        return trained_model(trainer.engine), trainer.state.tokens
    finally:
        trainer.close()
        events.close()
