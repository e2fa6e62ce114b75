"""Does it learn what it should?  A key is shown once and asked for 8 and more windows later (benchmarks/recall.py).

A document takes two to four segments, so no gradient of the late questions reaches the key: it must be carried.  A
model that does not see the key is right only by chance, and then the answers to the documents' last questions are
independent draws: bounds are those of the binomial distribution.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.models import parameter_count
from benchmarks.recall import CELLS, KEYS, Recall, Size, configuration, recall, settings, train
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import single_process

pytestmark = pytest.mark.slow

SIZE = Size()
FAR = 8  # windows
UNLIKELY = 1e-6


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads decides the order of sums
    with single_process() as device:
        yield device
    torch.set_num_threads(threads)


def trained(kind: str, device: Device, size: Size = SIZE) -> Recall:
    config = configuration(size, seed=0, **settings(kind, size))
    model, _ = train(config, size, device)
    return recall(model, config, size)


def most_by_chance(draws: int) -> int:
    """The number of right answers that guessing exceeds with a probability below `UNLIKELY`."""
    chance, above, right = 1 / KEYS, 0.0, draws
    while right >= 0:
        above += math.comb(draws, right) * chance**right * (1 - chance) ** (draws - right)
        if above >= UNLIKELY:
            break
        right -= 1
    return right


def test_the_bound_is_that_of_the_binomial_distribution() -> None:
    assert most_by_chance(7) == 6  # all right: 8^-7 = 5e-7; six or more: 50 * 8^-7
    assert most_by_chance(1) == 1
    assert 0.2 < most_by_chance(256) / 256 < 0.25


@pytest.mark.parametrize("kind", ["fixed:skip", "lstm:dual"])
def test_recurrent_models_remember(kind: str, device: Device) -> None:
    found = trained(kind, device)
    assert found.asked[FAR:].sum() > 256 and found.asked[0] == 0
    assert found.accuracy(FAR) > 0.95, found
    assert found.last > 0.95 * found.documents, found


@pytest.mark.parametrize("kind", ["sliding window", "state cleared"])
def test_without_a_carried_state_it_is_chance(kind: str, device: Device) -> None:
    found = trained(kind, device)
    assert found.last <= most_by_chance(found.documents), found


def test_the_sliding_window_has_as_many_parameters(device: Device) -> None:
    recurrent, plain = (
        parameter_count(configuration(SIZE, 0, **chosen).model)
        for chosen in (CELLS["fixed:skip"], settings("sliding window", SIZE))
    )
    assert plain == pytest.approx(recurrent, rel=0.005)


def test_a_seed_gives_one_result(device: Device) -> None:
    size = Size(steps=25)
    config = configuration(size, seed=3, **CELLS["fixed:skip"])

    def losses(**changes: Any) -> list[float]:
        return train(config.model_copy(update=changes), size, device)[1]

    first = losses()
    assert losses() == first
    assert losses(run=config.run.model_copy(update={"seed": 4})) != first
