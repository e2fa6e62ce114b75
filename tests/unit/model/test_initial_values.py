"""Initial weights: the generator against its definition, the distributions against theirs, and any part separately."""

import math
from collections.abc import Callable
from hashlib import sha256
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.model import initial_values
from brt_dist.model.boxes import Box, runs
from brt_dist.model.initial_values import Initializer, constant, fan_in, normal, ones, shares, uniform

WORD = 2**64


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as the paper defines it: four numbers of one counter."""
    c = [counter >> 64 * i & WORD - 1 for i in range(4)]
    k = [key & WORD - 1, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second >> 64 ^ c[1] ^ k[0], second % WORD, first >> 64 ^ c[3] ^ k[1], first % WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) % WORD, (k[1] + 0xBB67AE8584CAA73B) % WORD]
    return c


@pytest.mark.parametrize("first", [0, 1, 6, 4 * 2**70 + 3])
def test_numbers_are_those_of_philox(first: int) -> None:
    key = 0x1234567890ABCDEF_FEDCBA0987654321
    # NumPy raises its counter before it draws
    expected = [philox(number // 4 + 1, key)[number % 4] for number in range(first, first + 9)]
    assert shares(key, first, 9).tolist() == [((bits >> 12) + 0.5) / 2**52 for bits in expected]


def test_no_number_is_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def __init__(self, **_: int) -> None: ...

        def random_raw(self, count: int) -> "np.ndarray":  # type: ignore[type-arg]
            return np.array([0, WORD - 1][:count], dtype=np.uint64)

    monkeypatch.setattr(np.random, "Philox", Extreme)
    low, high = shares(0, 0, 2)
    assert 0 < low < high < 1
    for initializer in (normal(1.0), fan_in()):
        assert torch.isfinite(initializer.draw("key", (2, 1), ((0, 2), (0, 1)), 0, 2)).all()


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    box = tuple(sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape)
    size = math.prod(stop - start for start, stop in box)
    begin, end = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
    return shape, tuple((start, stop) for start, stop in box), begin, end


@given(parts())
def test_runs_are_the_elements_of_the_part_in_order(part: tuple[tuple[int, ...], Box, int, int]) -> None:
    shape, box, begin, end = part
    numbers = np.arange(math.prod(shape)).reshape(shape)[tuple(slice(*side) for side in box)].flatten()[begin:end]
    found = [range(first, first + count) for first, count in runs(shape, box, begin, end)]
    assert [number for run in found for number in run] == numbers.tolist()
    assert all(found)


def test_whole_rows_are_one_run() -> None:
    assert list(runs((8, 6), ((2, 5), (0, 6)), 0, 18)) == [(12, 18)]
    assert list(runs((4, 8, 6), ((1, 2), (2, 5), (0, 6)), 3, 15)) == [(63, 12)]
    assert list(runs((8, 6), ((2, 5), (2, 4)), 1, 5)) == [(15, 1), (20, 2), (26, 1)]


@given(
    parts(),
    st.sampled_from([normal(0.5), fan_in(2.0), ones(), uniform(-1, 2), constant(0.5)]),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_a_part_is_that_of_the_whole(
    part: tuple[tuple[int, ...], Box, int, int], initializer: Initializer, chunk: int
) -> None:
    shape, box, begin, end = part
    shape, box = (*shape, 5), (*box, (0, 5))  # a linear map has two dimensions
    whole = initializer.draw("key", shape, tuple((0, size) for size in shape), 0, math.prod(shape)).view(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial_values, "_CHUNK", chunk)
        found = initializer.draw("key", shape, box, 5 * begin, 5 * end)
    assert torch.equal(found, whole[tuple(slice(*side) for side in box)].flatten()[5 * begin : 5 * end])


def test_uniform_and_constant_values() -> None:
    values = uniform(-1.0, 3.0).draw("key", (10_000,), ((0, 10_000),), 0, 10_000).sort().values.double()
    exact = (values + 1) / 4
    assert (exact - torch.arange(10_000) / 10_000).abs().max() < 1.95 / 100
    assert values[0] >= -1 and values[-1] <= 3
    assert constant(0.5).draw("key", (9,), ((2, 7),), 1, 4).tolist() == [0.5] * 3
    assert not constant(0.5).is_random and not ones().is_random and uniform(0, 1).is_random


def cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def truncated_cdf(x: float) -> float:
    return (cdf(max(min(x, 2.0), -2.0)) - cdf(-2.0)) / (cdf(2.0) - cdf(-2.0))


# exact moments of a standard normal: whole, and cut off at 2
_DENSITY = math.exp(-2) / math.sqrt(2 * math.pi)
_CUT_VARIANCE = 1 - 4 * _DENSITY / (cdf(2.0) - cdf(-2.0))


@pytest.mark.parametrize(
    ("initializer", "unit", "distribution", "variance"),
    [
        (normal(0.1), 0.1, cdf, 1.0),
        (fan_in(0.1), math.sqrt(0.1 / 250 / _CUT_VARIANCE), truncated_cdf, _CUT_VARIANCE),
    ],
)
def test_values_have_their_distribution(
    initializer: Initializer, unit: float, distribution: Callable[[float], float], variance: float
) -> None:
    shape = (400, 250)
    values = initializer.draw("parameter/0/some", shape, ((0, 400), (0, 250)), 0, 100_000).double()
    count, standard = len(values), (values / unit).sort().values
    assert abs(standard.mean().item()) < 4 * math.sqrt(variance / count)
    assert standard.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count))
    # Kolmogorov and Smirnov: more than 1.95/sqrt(n) apart has a probability of 0.001
    exact = torch.tensor([distribution(value) for value in standard.tolist()], dtype=torch.float64)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    assert max((exact - steps[:-1]).max().item(), (steps[1:] - exact).max().item()) < 1.95 / math.sqrt(count)
    if distribution is truncated_cdf:
        # a linear map of unit inputs has outputs of this variance; nothing is beyond two standard deviations
        assert values.var().item() == pytest.approx(0.1 / 250, rel=0.02)
        assert 1.999 < standard.abs().max().item() <= 2 * (1 + 1e-6)
    # neighbours, and elements of one block of Philox, know nothing of each other
    raw = values / unit
    for distance in (1, 2, 3, 4, 250):
        product = (raw[:-distance] * raw[distance:]).mean().item()
        assert abs(product) < 4 * variance / math.sqrt(count - distance)


def test_the_values_of_a_seed_are_these() -> None:
    """What a seed means is fixed; a version that changes it says so in the changelog."""
    key = int.from_bytes(sha256(b"parameter/7/layers.0.mlp.hidden.weight").digest()[:16])
    below = cdf(-2.0)
    expected = []
    for number in range(6):
        share = ((philox(number // 4 + 1, key)[number % 4] >> 12) + 0.5) / 2**52
        standard = NormalDist().inv_cdf(below + share * (1 - 2 * below))
        expected.append(standard * math.sqrt(1 / 3 / _CUT_VARIANCE))
    found = fan_in().draw("parameter/7/layers.0.mlp.hidden.weight", (2, 3), ((0, 2), (0, 3)), 0, 6)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
