"""The order of documents: a seeded permutation per epoch, computed one number at a time.

A keyed Feistel network permutes [0, 2**bits), the smallest such range that holds all K documents; a value that
falls outside [0, K) goes through the network again until it falls inside ("cycle walking", Black and Rogaway,
Ciphers with Arbitrary Finite Domains, 2002).  So the document at any position of any epoch costs the same, nothing
is stored, and the order does not depend on the random generators of any library.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

ROUNDS = 8  # even, so that both halves are changed equally often
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(values: UInt64Array) -> UInt64Array:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Order(Protocol):
    """Maps ordinals to documents; each epoch has every document once."""

    def __call__(self, ordinals: Int64Array) -> Int64Array: ...


class EpochOrder:
    """Maps ordinals to documents.  Ordinal g = epoch * K + position; each epoch has every document once.

    Args:
        documents: their number [K], at least 1.
        seed: any 64-bit integer.
    """

    def __init__(self, documents: int, seed: int) -> None:
        if documents < 1:
            raise ValueError(f"an order needs at least one document, got {documents}")
        self.documents = documents
        self.seed = seed
        bits = (documents - 1).bit_length()
        self._right_bits = np.uint64(bits - bits // 2)
        self._left_mask = np.uint64((1 << bits // 2) - 1)
        self._right_mask = np.uint64((1 << (bits - bits // 2)) - 1)

    def __call__(self, ordinals: Int64Array) -> Int64Array:
        """Documents (n,) of the ordinals (n,), each in [0, K)."""
        epoch, position = np.divmod(np.asarray(ordinals, dtype=np.int64), self.documents)
        seed_key = _mix(np.array([(self.seed + _GOLDEN) & _MASK], dtype=np.uint64))
        key = _mix(epoch.astype(np.uint64) * np.uint64(_GOLDEN) ^ seed_key)
        value = self._permute(position.astype(np.uint64), key)
        outside = np.flatnonzero(value >= self.documents)
        while outside.size:
            value[outside] = self._permute(value[outside], key[outside])
            outside = outside[value[outside] >= self.documents]
        return value.astype(np.int64)

    def _permute(self, value: UInt64Array, key: UInt64Array) -> UInt64Array:
        """One pass of the network: each round changes one half by a keyed function of the other half."""
        left, right = value >> self._right_bits, value & self._right_mask
        for round_number in range(ROUNDS):
            round_key = key + np.uint64((round_number + 1) * _GOLDEN & _MASK)
            if round_number % 2 == 0:
                left = left ^ (_mix(right ^ round_key) & self._left_mask)
            else:
                right = right ^ (_mix(left ^ round_key) & self._right_mask)
        return (left << self._right_bits) | right
