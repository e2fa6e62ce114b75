"""Indexed datasets of Megatron, as megatron-core's preprocessing writes them.

NAME.bin   the raw ids of all sequences, one after another
NAME.idx   magic (9 bytes), version (uint64), type of the ids (uint8), number of sequences n and of document ends m
           (uint64 each); the lengths of the sequences (int32, n), their first bytes in NAME.bin (int64, n), the
           sequences at which documents begin and the last one ends (int64, m); of multimodal data, the mode of each
           sequence (int8, n)

All integers are little-endian.  A document is one sequence or, when sentences were split, several.  megatron-core's own
reader trusts the file, so this one checks every number before it is used; the tests compare the two.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.format import TokenType
from brt_dist.errors import DataError

BIN, IDX = ".bin", ".idx"
MOST_DOCUMENTS = 5_000_000  # of a file: the index of a shard is one JSON of at most 1 GiB
_MAGIC, _OLD_MAGIC = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
_HEADER = 34  # bytes
_TYPES: dict[int, TokenType] = {3: "uint16", 4: "uint32", 8: "uint16"}  # int16, int32 and uint16, as none is negative
_OTHER_TYPES = {1: "uint8", 2: "int8", 5: "int64", 6: "float64", 7: "float32"}


@dataclass(frozen=True)
class Documents:
    """The documents of NAME.bin, in order: of each, the first byte and the number of ids (K,), and the type of ids."""

    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    dtype: TokenType


def is_megatron(path: Path) -> bool:
    """Whether the path is NAME.bin, NAME.idx, or NAME as in Megatron's options."""
    return path.suffix in (BIN, IDX) or (not path.exists() and _beside(path, IDX).exists())


def bin_of(path: Path) -> Path:
    """NAME.bin of any of the three."""
    return _beside(path, BIN)


def read_index(path: Path) -> Documents:
    """The documents that the index of `path` (NAME.bin) lists, all within the file.

    Raises:
        DataError: one of the two files is missing, damaged, or of an unsupported kind.
    """
    index = path.with_suffix(IDX)
    try:
        size = path.stat().st_size
        content = np.memmap(index, dtype=np.uint8, mode="r") if index.stat().st_size else np.empty(0, np.uint8)
    except (OSError, ValueError) as error:
        why = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as Megatron's tokens, which are {BIN} and {IDX}: {why}") from None
    try:
        return _documents(content, size, path.name)
    except ValueError as error:
        raise DataError(f"{index}: {error}") from None


def _documents(content: npt.NDArray[np.uint8], size: int, name: str) -> Documents:
    """The documents of an index; ValueError: it is not an index, or does not fit a file of `size` bytes."""
    head = content[:_HEADER].tobytes()
    if head.startswith(_OLD_MAGIC):
        raise ValueError(
            "an index of Megatron's old format (TNTIDX), which is not supported; preprocess the text again"
        )
    if not head.startswith(_MAGIC) or len(head) < _HEADER:
        raise ValueError("not an index of Megatron (it does not begin with MMIDIDX)")
    version, code = int.from_bytes(head[9:17], "little"), head[17]
    sequences, ends = (int.from_bytes(head[at : at + 8], "little") for at in (18, 26))
    if version != 1:
        raise ValueError(f"version {version} of Megatron's index; version 1 is read")
    if code not in _TYPES:
        raise ValueError(f"its ids are {_OTHER_TYPES.get(code, f'of type {code}')}; uint16 and int32 are read")
    plain = _HEADER + 12 * sequences + 8 * ends
    if content.size not in (plain, plain + sequences):
        raise ValueError(f"damaged: {content.size} bytes, but its header says {plain} (with modes {plain + sequences})")
    if not 2 <= ends <= MOST_DOCUMENTS + 1:
        raise ValueError(f"{max(ends - 1, 0):,} documents; a file must have 1 to {MOST_DOCUMENTS:,}")
    modes = content[plain:]
    if modes.any():
        raise ValueError(f"multimodal: sequence {int(np.argmax(modes != 0))} is not text; only text is read")
    dtype = _TYPES[code]
    lengths = _values(content, _HEADER, "<i4", sequences).astype(np.int64)
    places = _values(content, _HEADER + 4 * sequences, "<i8", sequences)
    bounds = _values(content, _HEADER + 12 * sequences, "<i8", ends)
    after = np.concatenate([[0], np.cumsum(lengths)]) * np.dtype(dtype).itemsize
    if (lengths < 0).any() or not np.array_equal(places, after[:-1]):
        raise ValueError("damaged: the sequences do not follow each other")
    if bounds[0] != 0 or bounds[-1] != sequences or (np.diff(bounds) < 0).any():
        raise ValueError("damaged: the documents do not follow each other")
    if after[-1] != size:
        raise ValueError(
            f"{name} has {size} bytes, but the index says {after[-1]}: it is damaged, or belongs to another index"
        )
    starts = after[bounds]
    return Documents(starts[:-1], np.diff(starts) // np.dtype(dtype).itemsize, dtype)


def _values(content: npt.NDArray[np.uint8], begin: int, dtype: str, count: int) -> npt.NDArray[Any]:
    return np.frombuffer(content, dtype=dtype, count=count, offset=begin)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix) if path.suffix in (BIN, IDX) else path.with_name(path.name + suffix)
