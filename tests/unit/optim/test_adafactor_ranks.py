"""Adafactor on several ranks, each a thread: as on one, with two all-reduces for an update."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brt_dist.optim import adafactor_update
from brt_dist.optim.adafactor import FACTOR_FROM
from brt_dist.optim.adafactor_update import AdafactorUpdate
from brt_dist.optim.base import LocalMatrix, Sharding
from brt_dist.optim.matrix_range import MatrixRange
from tests.unit.optim.test_adafactor import LR, STEPS, Plain

KINDS, RUN = 3, 16  # of the stacked matrix
# name: whole shape, and the dimension that tensor parallelism splits
PARAMETERS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "vocabulary": ((301, 144), 0),  # padded
    "stacked": ((KINDS * RUN * 8, 144), 0),
    "row": ((160, 256), 1),
    "thin": ((160, 32), 1),
    "whole": ((130, 130), None),
    "norm": ((7,), None),
}
LAYOUTS = [(1, 1), (2, 1), (1, 3), (2, 3)]  # tensor parallel, ZeRO's ranges


class Group:
    """A process group of threads, with all-reduces that are counted."""

    def __init__(self, ranks: int) -> None:
        self.sums: list[Tensor] = []
        self.calls = 0
        self._size = ranks
        self._barrier = threading.Barrier(ranks)

    def size(self) -> int:
        return self._size

    def all_reduce(self, values: Tensor) -> None:
        self.sums.append(values.clone())
        if self._barrier.wait(30) == 0:
            self.calls += 1
        total = torch.stack(self.sums).sum(0)
        self._barrier.wait(30)
        values.copy_(total)
        if self._barrier.wait(30) == 0:
            self.sums.clear()
        self._barrier.wait(30)


def part_of(name: str, tensor: int) -> LocalMatrix:
    shape, split = PARAMETERS[name]
    local = list(shape)
    if split is not None:
        local[split] = -(-shape[split] // tensor)
    return LocalMatrix(tuple(local), split, tensor, shape[0], (KINDS, RUN) if name == "stacked" else (1, 1))


def cut(name: str, value: np.ndarray[Any, Any], tensor: int, rank: int) -> Tensor:
    """A rank's part, padded with zeros."""
    part = part_of(name, tensor)
    whole = torch.from_numpy(value)
    if part.split is None:
        return whole
    size = part.shape[part.split]
    missing = size * tensor - whole.shape[part.split]
    if missing:
        whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])])
    return whole.narrow(part.split, rank * size, size)


def matrices(name: str, value: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The separate matrices that are stacked in one."""
    if name != "stacked":
        yield value
        return
    stacked = value.reshape(-1, KINDS, RUN, value.shape[1])
    yield from (stacked[:, kind].reshape(-1, value.shape[1]) for kind in range(KINDS))


def train(tensor: int, shards: int, rank: int, group: Group, values: Any, gradients: Any) -> Tensor:
    """The flat weights of a rank after all steps."""
    tensor_rank, shard = rank % tensor, rank // tensor

    def flat(named: Any) -> Tensor:
        whole = torch.cat([cut(name, value, tensor, tensor_rank).flatten() for name, value in named.items()])
        whole = torch.cat([whole, whole.new_zeros(-len(whole) % shards)])
        return whole.chunk(shards)[shard].clone()

    held = flat(values)
    sharding = Sharding(tensor, tensor_rank, True, shards, shard, group)  # type: ignore[arg-type]
    parts = [part_of(name, tensor) for name in PARAMETERS]
    rule = AdafactorUpdate([held], parts, sharding, lr=LR, momentum=0.9, decay_rate=0.8, factor_from=FACTOR_FROM)
    for gradient in gradients:
        held.grad = flat(gradient)
        rule.step()
    return held


@pytest.mark.parametrize(("tensor", "shards"), LAYOUTS)
def test_every_layout_equals_the_published_rule(monkeypatch: pytest.MonkeyPatch, tensor: int, shards: int) -> None:
    random = np.random.default_rng(2)

    def draw(scale: float) -> dict[str, np.ndarray[Any, Any]]:
        return {name: random.normal(0, scale, shape).astype(np.float32) for name, (shape, _) in PARAMETERS.items()}

    values, gradients = draw(0.1), [draw(1.0) for _ in range(STEPS)]
    ranks = tensor * shards
    group = Group(ranks)
    monkeypatch.setattr(adafactor_update.dist, "all_reduce", lambda values, group: group.all_reduce(values))
    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(lambda rank: train(tensor, shards, rank, group, values, gradients), range(ranks)))
    assert group.calls == (2 * STEPS if ranks > 1 else 0)

    plain = {name: [Plain(one) for one in matrices(name, value)] for name, value in values.items()}
    for number, gradient in enumerate(gradients, 1):
        for name, ones in plain.items():
            for rule, one in zip(ones, matrices(name, gradient[name]), strict=True):
                rule.step(one, number)
    for tensor_rank in range(tensor):
        whole = torch.cat(found[tensor_rank::tensor])
        for name, ones in plain.items():
            part = part_of(name, tensor)
            mine, whole = whole[: part.numel].view(part.shape), whole[part.numel :]
            expected = np.empty(PARAMETERS[name][0])
            for place, rule in zip(
                matrices(name, np.arange(expected.size).reshape(len(expected), -1)), ones, strict=True
            ):
                expected.reshape(-1)[place.reshape(rule.value.shape)] = rule.value
            np.testing.assert_allclose(
                mine.numpy(), cut(name, expected, tensor, tensor_rank).numpy(), rtol=0, atol=2e-6
            )


@pytest.mark.parametrize("stacked", [(1, 1), (3, 4)])
@pytest.mark.parametrize(("start", "count"), [(0, 24 * 5), (0, 0), (7, 1), (13, 60), (5 * 12, 5 * 12), (118, 2)])
def test_columns_are_summed_alike_on_every_device(stacked: tuple[int, int], start: int, count: int) -> None:
    """A CPU adds row after row, as it always did; other devices take another, deterministic way."""
    part = LocalMatrix((24, 5), None, 1, 24, stacked)
    values = torch.linspace(-1, 2, 24 * 5, dtype=torch.float64)[start : start + count]
    where = MatrixRange(part, start, count, values.device)
    whole = torch.zeros(24 * 5, dtype=torch.float64)
    whole[start : start + count] = values
    expected = torch.stack(
        [whole.view(24, 5)[torch.arange(24) // stacked[1] % stacked[0] == p].sum(0) for p in range(stacked[0])]
    )
    torch.testing.assert_close(where.sum_columns(values), expected)
    torch.testing.assert_close(where._sum_runs(values), expected)
