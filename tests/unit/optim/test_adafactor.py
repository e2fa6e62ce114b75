"""Adafactor against a plain float64 version of the published rule, one separate matrix at a time."""

from typing import Any

import numpy as np
import pytest
import torch

from brt_dist.optim.adafactor import FACTOR_FROM
from brt_dist.optim.adafactor_update import AdafactorUpdate
from brt_dist.optim.base import LocalMatrix, Sharding
from brt_dist.parallel.layout import MegatronGroups, single_process

STEPS, LR = 5, 0.03


class Plain:
    """The rule of arXiv 1804.04235 with the paper's settings, for one parameter (rows, columns) or (n,)."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self.value = value.astype(np.float64)
        self.momentum = np.zeros_like(self.value)
        self.row = self.column = self.full = 0.0
        self.factored = value.ndim == 2 and min(value.shape) >= 128

    def step(self, gradient: np.ndarray[Any, Any], number: int) -> None:
        decay = 1 - number**-0.8
        square = gradient.astype(np.float64) ** 2 + 1e-30
        if self.factored:
            self.row = decay * self.row + (1 - decay) * square.mean(1)
            self.column = decay * self.column + (1 - decay) * square.mean(0)
            second = np.outer(self.row, self.column) / np.mean(self.row)
        else:
            second = self.full = decay * self.full + (1 - decay) * square
        update = gradient / np.sqrt(second)
        update /= max(1.0, np.sqrt((update**2).mean()))
        update *= LR * max(np.sqrt((self.value**2).mean()), 1e-3)
        self.momentum = 0.9 * self.momentum + 0.1 * update
        self.value -= self.momentum


def optimizer(parameters: list[torch.Tensor], parts: list[LocalMatrix], flat: bool) -> AdafactorUpdate:
    sharding = Sharding(
        tensor=1, tensor_rank=0, is_flat=flat, shards=1, shard=0,
        group=MegatronGroups.get_tensor_model_parallel_group(),
    )  # fmt: skip
    return AdafactorUpdate(parameters, parts, sharding, lr=LR, momentum=0.9, decay_rate=0.8, factor_from=FACTOR_FROM)


SHAPES = [(256, 160), (128, 32), (7,), (300, 130)]  # factored, too thin, a vector, factored


@pytest.mark.parametrize("flat", [False, True], ids=["whole", "flat"])
def test_equals_the_published_rule(flat: bool) -> None:
    random = np.random.default_rng(0)
    values = [random.normal(0, 0.1, shape).astype(np.float32) for shape in SHAPES]
    plain = [Plain(value) for value in values]
    parts = [LocalMatrix(shape, None, 1, shape[0]) for shape in SHAPES]
    with single_process():
        padding = 5  # ZeRO pads its flat tensor at the end
        if flat:
            held = [torch.cat([torch.from_numpy(value).flatten() for value in values] + [torch.zeros(padding)])]
        else:
            held = [torch.from_numpy(value.copy()) for value in values]
        rule = optimizer(held, parts, flat)
        for number in range(1, STEPS + 1):
            gradients = [random.normal(0, 1, shape).astype(np.float32) for shape in SHAPES]
            for one, gradient in zip(plain, gradients, strict=True):
                one.step(gradient, number)
            tensors = [torch.from_numpy(gradient) for gradient in gradients]
            if flat:
                held[0].grad = torch.cat([tensor.flatten() for tensor in tensors] + [torch.zeros(padding)])
            else:
                for parameter, tensor in zip(held, tensors, strict=True):
                    parameter.grad = tensor
            rule.step()
        sizes = [value.size for value in values]
        found = held[0].split([*sizes, padding])[:-1] if flat else held
        for one, tensor, shape in zip(plain, found, SHAPES, strict=True):
            np.testing.assert_allclose(tensor.view(shape).numpy(), one.value, rtol=0, atol=2e-7)


def test_stacked_matrices_are_separate_parameters() -> None:
    """Three matrices of 256 rows, alternating in runs of 16 rows, as the fused projections of heads are."""
    random = np.random.default_rng(1)
    kinds, run, heads, columns = 3, 16, 16, 144
    values = random.normal(0, 0.1, (heads, kinds, run, columns)).astype(np.float32)
    values[:, 1] *= 20  # another scale: joint statistics would show
    plain = [Plain(values[:, kind].reshape(-1, columns)) for kind in range(kinds)]
    with single_process():
        held = torch.from_numpy(values.reshape(-1, columns).copy())
        part = LocalMatrix(tuple(held.shape), None, 1, held.shape[0], stacked=(kinds, run))
        rule = optimizer([held], [part], flat=False)
        for number in range(1, STEPS + 1):
            gradient = random.normal(0, 1, values.shape).astype(np.float32)
            gradient[:, 2] *= 50
            for kind, one in enumerate(plain):
                one.step(gradient[:, kind].reshape(-1, columns), number)
            held.grad = torch.from_numpy(gradient.reshape(-1, columns))
            rule.step()
        found = held.view(heads, kinds, run, columns).numpy()
        for kind, one in enumerate(plain):
            np.testing.assert_allclose(found[:, kind].reshape(-1, columns), one.value, rtol=0, atol=2e-6)
