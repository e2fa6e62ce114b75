"""Small networks, inputs and comparisons for the tests of the model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.memory import Memory
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import initialize, logical_parameters

ALL_CELLS = [(cell, gate) for cell in ("skip", "single", "dual") for gate in ("fixed", "lstm")]

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{cell}-{gate}": {"cell": cell, "gate": gate} for cell, gate in ALL_CELLS},
    **{f"feedback-{cell}-{gate}": {"cell": cell, "gate": gate, "feedback": True} for cell, gate in ALL_CELLS},
    "two-recurrent": {"recurrent_layers": (0, 2)},
    "feedback-two-recurrent": {"recurrent_layers": (0, 2), "feedback": True},
    "transformer-xl": {"recurrent_layers": ()},
    "rotary": {"positions": "rotary"},
    "no-positions": {"positions": "none"},
}


def small(**changes: Any) -> ModelConfig:
    """Sizes that are all different, so that no two can be confused unnoticed; heads*head_dim is not the width."""
    sizes = dict(
        layers=3, width=10, heads=2, head_dim=6, mlp_width=14, vocab_size=23, window=4, states=5, recurrent_layers=(1,)
    )
    return ModelConfig(**{**sizes, "dropout": 0.0, **changes})


def built(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlockRecurrentModel:
    """A network whose parameters are all off their initial values (scales of 1 would hide mistakes)."""
    model = BlockRecurrentModel(config).to(dtype)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 1.5 if name.endswith("scale.weight") else 0.3  # some scales are below zero
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        model.embedding.weight[config.vocab_size :] = 0
    return model


def tokens_of(config: ModelConfig, streams: int, blocks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (streams, blocks * config.window), generator=generator)


def some_memory(model: BlockRecurrentModel, streams: int, seed: int = 0) -> list[Memory]:
    """Memory full of numbers, as if something had been read before."""
    generator = torch.Generator().manual_seed(seed)

    def filled(field: Tensor) -> Tensor:
        return torch.randn(field.shape, generator=generator).to(field.dtype)

    return [{name: filled(field) for name, field in layer.items()} for layer in model.blank_memory(streams)]


def starts_of(*rows: Sequence[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def fields(memory: Sequence[Memory]) -> list[Tensor]:
    """All tensors of a memory, in a fixed order."""
    return [layer[name] for layer in memory for name in sorted(layer)]


def gradients(model: BlockRecurrentModel, value: Tensor) -> dict[str, Tensor]:
    """Gradient of each logical parameter."""
    parameters = list(logical_parameters(model))
    found = torch.autograd.grad(value, [parameter.local for parameter in parameters], materialize_grads=True)
    return {parameter.name: parameter.whole([grad]) for parameter, grad in zip(parameters, found, strict=True)}
