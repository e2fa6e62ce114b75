"""Shared by the comparisons: models of equal size, and a trained model outside its engine."""

import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import load
from brt_dist.parallel.engine import Engine


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
