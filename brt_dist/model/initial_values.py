"""Initial weights: any part of a logical tensor can be drawn separately, with the same result on any rank.

Element i of a tensor depends only on the seed, the name of the tensor and i.  The bits come from Philox
(10.1145/2063384.2063405), a generator that computes the i-th number from a counter instead of from the number before.
The inverse of the distribution function turns one number into one value, so no value is ever redrawn.  NumPy's
Philox is used because it is compiled; the same integer arithmetic in torch operations would read and write each tensor
dozens of times.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from brt_dist.model.boxes import Box, runs

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_CUT = 2.0  # standard deviations at which a truncated normal ends
_BELOW = 0.022750131948179209  # probability that a standard normal is below -_CUT
_TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at _CUT
_PER_BLOCK = 4  # numbers that Philox makes from one counter
_CHUNK = 1 << 20  # values that are drawn at once: 8 MB in float64


@dataclass(frozen=True)
class Initializer:
    """Distribution of the initial values of a parameter, given its logical shape."""

    kind: Literal["ones", "normal", "fan_in", "uniform", "drawn"]
    scale: float = 1.0
    first: float = 0.0
    """uniform: the low end; `scale` is the distance to the high end"""
    quantile: Callable[[Tensor], Tensor] | None = None
    """drawn: the inverse of the distribution function"""

    @property
    def is_random(self) -> bool:
        """Whether values are drawn at all."""
        return self.kind != "ones" and self.scale != 0

    def draw(self, key: str, shape: Sequence[int], box: Box, begin: int, end: int) -> Tensor:
        """Initial values of a part of a logical tensor.

        Args:
            key: what the numbers depend on, such as seed and name.
            shape: of the whole tensor, (outputs, inputs) of a linear map.
            box: (start, stop) in each dimension.
            begin: first element to draw, in row-major order of the box.
            end: end of the elements, exclusive.

        Returns:
            (end - begin,), float32, on the CPU.
        """
        if not self.is_random:
            return torch.full((end - begin,), 1.0 if self.kind == "ones" else self.first)
        values, written = torch.empty(end - begin), 0
        for numbers in _chunks(runs(shape, box, begin, end), int.from_bytes(sha256(key.encode()).digest()[:16])):
            values[written : written + len(numbers)] = self._inverse(torch.from_numpy(numbers), shape)
            written += len(numbers)
        return values

    def _inverse(self, share: Tensor, shape: Sequence[int]) -> Tensor:
        """The values below which the distribution has these shares of its mass; float64."""
        if self.quantile is not None:
            return self.quantile(share)
        if self.kind == "uniform":
            return self.first + self.scale * share
        if self.kind == "normal":
            return torch.special.ndtri(share) * self.scale
        standard = torch.special.ndtri(_BELOW + share * (1 - 2 * _BELOW)).clamp(-_CUT, _CUT)
        return standard * (math.sqrt(self.scale / shape[1]) / _TRUNCATED_STD)


def ones() -> Initializer:
    return Initializer("ones")


def drawn(quantile: Callable[[Tensor], Tensor]) -> Initializer:
    """Any distribution, by the inverse of its distribution function: of numbers in (0, 1), float64."""
    return Initializer("drawn", quantile=quantile)


def normal(std: float) -> Initializer:
    return Initializer("normal", std)


def uniform(low: float, high: float) -> Initializer:
    return Initializer("uniform", high - low, low)


def constant(value: float) -> Initializer:
    return Initializer("uniform", 0.0, value)


def fan_in(variance: float = 1.0) -> Initializer:
    """Normal cut off at two standard deviations, of variance `variance` / inputs, for weights (outputs, inputs)."""
    return Initializer("fan_in", variance)


def shares(key: int, first: int, count: int) -> Numbers:
    """Numbers `first` to `first + count` of the sequence `key`, each in the open interval (0, 1)."""
    skip = first % _PER_BLOCK
    bits = np.random.Philox(key=key, counter=first // _PER_BLOCK).random_raw(skip + count)[skip:]
    # 52 bits and a half: neither 0 nor 1, whose normal values would be infinite
    return np.asarray(((bits >> np.uint64(12)) + 0.5) * 2.0**-52, dtype=np.float64)


def _chunks(wanted: Iterable[tuple[int, int]], key: int) -> Iterator[Numbers]:
    """The numbers of all runs, many at once: inverting only a few is mostly overhead."""
    found: list[Numbers] = []
    size = 0
    for first, count in wanted:
        for start in range(first, first + count, _CHUNK):
            found.append(shares(key, start, min(_CHUNK, first + count - start)))
            size += len(found[-1])
            if size >= _CHUNK:
                yield np.concatenate(found)
                found, size = [], 0
    if found:
        yield np.concatenate(found)
