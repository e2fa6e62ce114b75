"""Checksums of tensors by their bits; the checksums of adjoining parts add up to that of the whole."""

import hashlib

import torch
from torch import Tensor

_CHUNK = 1 << 20  # elements at a time, as 8-byte integers
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)  # of splitmix64, odd


def checksum(values: Tensor, first: int = 0) -> Tensor:
    """Sum over all elements of bits times a weight, modulo 2^64; int64 scalar on the device.

    Weights are odd and differ from place to place, so any change of one element changes the sum, and others do with
    all but a chance of 2^-64.  Integers are summed, so the result does not depend on the order.

    Args:
        values: (n,), contiguous.
        first: place of the first element in the whole tensor.
    """
    bits = values.view(_BITS[values.element_size()])
    weights = _weights(min(first % _CHUNK + len(bits), _CHUNK), values.device)
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    done = 0
    while done < len(bits):
        chunk, place = divmod(first + done, _CHUNK)
        part = bits[done : done + _CHUNK - place]
        total += (part.to(torch.int64) * weights[place : place + len(part)]).sum() * odd(str(chunk))
        done += len(part)
    return total


def odd(key: str) -> int:
    """A random odd number that depends on `key` only, as a signed 64-bit integer."""
    return signed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") | 1)


def signed(number: int) -> int:
    """`number` modulo 2^64, as a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _weights(count: int, device: torch.device) -> Tensor:
    """(count,) odd numbers."""
    mixed = torch.arange(1, count + 1, device=device)
    for factor in _FACTORS:
        mixed = mixed * signed(factor)
        mixed = mixed ^ (mixed >> 29)
    return mixed | 1
