"""Lion against a plain float64 version of the published rule."""

from typing import Any

import numpy as np
import pytest
import torch

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.errors import ConfigError
from brt_dist.optim.base import LocalMatrix
from brt_dist.optim.elementwise_update import ElementwiseUpdate
from brt_dist.optim.lion import Lion

STEPS = 7
SHAPES = [(64, 48), (5,), (1, 300), (33, 7)]
BASE = "data: {dataset: books}\nrun: {directory: runs/a, steps: 2000}\noptimizer: {name: lion}\n"


class Plain:
    """Algorithm 2 of arXiv 2302.06675, for one parameter."""

    def __init__(self, value: np.ndarray[Any, Any], decay: float) -> None:
        self.value, self.decay = value.astype(np.float64), decay
        self.momentum = np.zeros_like(self.value)

    def step(self, gradient: np.ndarray[Any, Any], rate: float) -> None:
        gradient = gradient.astype(np.float64)
        direction = np.sign(0.9 * self.momentum + 0.1 * gradient)
        self.value = self.value - rate * (direction + self.decay * self.value)
        self.momentum = 0.99 * self.momentum + 0.01 * gradient


@pytest.mark.parametrize("flat", [False, True], ids=["whole", "flat"])
def test_equals_the_published_rule(flat: bool) -> None:
    """flat: as ZeRO holds parameters, end to end in one tensor for each group."""
    random = np.random.default_rng(0)
    values = [random.normal(0, 0.1, shape).astype(np.float32) for shape in SHAPES]
    plain = [Plain(value, 0.1 if value.ndim > 1 else 0.0) for value in values]
    order = [0, 2, 3, 1]  # those that decay are a group, and come first
    held = [torch.from_numpy(values[i].copy()) for i in order]
    groups = [{"params": held[:3], "weight_decay": 0.1}, {"params": held[3:], "weight_decay": 0.0}]
    if flat:
        held = [torch.cat([tensor.flatten() for tensor in held[:3]]), held[3]]
        groups = [{"params": held[:1], "weight_decay": 0.1}, {"params": held[1:], "weight_decay": 0.0}]
    lion = Lion(weight_decay=0.1)
    optimizer = ElementwiseUpdate(groups, lion.update, lion.state_names, lr=1.0)
    for number in range(STEPS):
        rate = 0.01 / (number + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        gradients = [random.normal(0, 10.0**-number, shape).astype(np.float32) for shape in SHAPES]
        gradients[3][:, 0] = 0  # a weight without a gradient stays where it is, but for its decay
        for one, gradient in zip(plain, gradients, strict=True):
            one.step(gradient, rate)
        tensors = [torch.from_numpy(gradients[i]) for i in order]
        if flat:
            tensors = [torch.cat([tensor.flatten() for tensor in tensors[:3]]), tensors[3]]
        for parameter, tensor in zip(held, tensors, strict=True):
            parameter.grad = tensor
        optimizer.step()
    wanted = [plain[i] for i in order]
    values_found = torch.cat([tensor.flatten() for tensor in held]).numpy()
    momentum = torch.cat([optimizer.state[tensor]["momentum"].flatten() for tensor in held]).numpy()
    np.testing.assert_allclose(values_found, np.concatenate([p.value.ravel() for p in wanted]), rtol=0, atol=1e-7)
    np.testing.assert_allclose(momentum, np.concatenate([p.momentum.ravel() for p in wanted]), rtol=1e-5, atol=1e-8)
    assert all(optimizer.state[tensor]["step"] == STEPS for tensor in held)


def test_it_remembers_half_as_much_as_adamw() -> None:
    part = LocalMatrix((64, 512), 1, 4, 64)
    assert [field.name for field in Lion().state_fields(part)] == ["momentum"]
    assert Lion().state_bytes([part], 1) == 4 * 64 * 512 and Lion().state_bytes([part], 4) == 64 * 512


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_it_allows_every_zero_stage(stage: int) -> None:
    check(load(BASE, [f"parallel={{data: 2, zero_stage: {stage}}}"]).config)
    check(load(BASE, ["parallel.zero_stage=0", "run.precision=fp32"]).config)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas=[0.9, 1.0] must each be at least 0 and less than 1"),
        ("optimizer.eps=1e-8", "unknown key optimizer.eps (only adamw has it); valid here: name, learning_rate"),
        ("optimizer.weight_decey=0", "unknown key optimizer.weight_decey; nearest: optimizer.weight_decay"),
        ("optimizer.name=lyon", "optimizer.name must be one of adamw, adafactor, lion, not 'lyon'; nearest: lion"),
    ],
)
def test_what_cannot_work_is_refused(setting: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(load(BASE, [setting]).config)
    assert told in str(error.value)
