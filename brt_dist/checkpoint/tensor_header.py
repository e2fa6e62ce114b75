"""Reads the header of a tensor file (safetensors): a length, and JSON that says where each tensor lies.

No allocation depends on the header, and a header that does not describe the file exactly is refused.  Does not need
torch.
"""

import math
from dataclasses import dataclass

from pydantic import TypeAdapter

from brt_dist.checkpoint.ranges import RangeReader
from brt_dist.errors import CheckpointError
from brt_dist.reading import parse_json

# we use the first four; other programs' files have tables of other types beside their weights
ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LENGTH = 8  # bytes of the length
_LIMIT = 100 << 20  # bytes of a header, as in the safetensors library


@dataclass(frozen=True)
class _Described:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor in a file.

    Attributes:
        dtype: its type, as safetensors names it.
        shape: its shape.
        begin: where in the file its first byte is.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int


_ADAPTER = TypeAdapter(dict[str, _Described])


def read_header(file: RangeReader, where: str) -> dict[str, PlacedTensor]:
    """The tensors in a file, by name.

    Args:
        file: to read from.
        where: its place, for messages.

    Raises:
        CheckpointError: it is not a tensor file.
        OSError: it cannot be read.
    """
    try:
        return _parse(file)
    except ValueError as error:
        raise CheckpointError(f"{where} is not a readable tensor file ({str(error) or type(error).__name__})") from None


def _parse(file: RangeReader) -> dict[str, PlacedTensor]:
    size = file.size
    if size < _LENGTH:
        raise ValueError(f"it has {size} bytes")
    length = int.from_bytes(file.read(0, _LENGTH), "little")
    if length > min(_LIMIT, size - _LENGTH):
        raise ValueError(f"its header claims {length} bytes")
    described = parse_json(file.read(_LENGTH, length))
    if isinstance(described, dict):
        described.pop("__metadata__", None)
    entries = _ADAPTER.validate_python(described)
    start, expected = _LENGTH + length, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in ELEMENT_BYTES or any(side < 0 for side in entry.shape):
            raise ValueError(f"{name} cannot be {entry.dtype} {list(entry.shape)}")
        if begin != expected or end - begin != math.prod(entry.shape) * ELEMENT_BYTES[entry.dtype]:
            raise ValueError(f"{name}, {entry.dtype} {list(entry.shape)}, does not fit bytes {begin} to {end}")
        expected = end
    if start + expected != size:
        raise ValueError(f"its tensors end at {start + expected}, the file at {size} bytes")
    return {
        name: PlacedTensor(entry.dtype, entry.shape, start + entry.data_offsets[0]) for name, entry in entries.items()
    }
