"""Reads files that anybody may have written: bounded in size and depth, strict in encoding.

Whatever such a file holds, these functions return plain values or raise OSError (there is no such file, it may not be
read) or ValueError (it is not what it should be).  The caller checks the types of the values.
"""

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

LATEST = 253_402_214_400.0  # unix seconds: the end of the year 9999
LARGEST_JSON = 1 << 30  # bytes; the indexes and tables of contents of large datasets are the longest of our own
DEEPEST_JSON = 64  # nested lists and objects; ours have at most ten
_LARGEST_HEADER = 4096  # bytes of the header of an array; numpy's own have 128
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|][iuf][1248])', 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]*)\), \} *\n"
)


def read_bytes(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it has more than `limit` bytes, or is no regular file (a pipe would never end).
    """
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def read_text(path: Path, limit: int = LARGEST_JSON) -> str:
    """The content of a text file in UTF-8.  Raises as :func:`read_bytes` does."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None


def read_json(path: Path, limit: int = LARGEST_JSON) -> Any:
    """The value in a JSON file.  Raises as :func:`read_bytes` does, and ValueError if it is not JSON."""
    return parse_json(read_bytes(path, limit))


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested deeper than any of our files.  UnicodeDecodeError: it is not UTF-8.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep") from None
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > DEEPEST_JSON and _depth(value) > DEEPEST_JSON:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
    return value


def read_record(path: Path, kind: type[T], limit: int = LARGEST_JSON) -> T:
    """The dataclass `kind` in a JSON file; unknown keys are ignored.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not JSON, or a value is missing or of another type.
    """
    return record_of(read_json(path, limit), kind)


def record_of(value: Any, kind: type[T]) -> T:
    """The dataclass `kind` from a JSON value.  Raises ValueError as :func:`read_record` does."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}") from None


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> "npt.NDArray[Any]":
    """The array in an .npy file, memory-mapped.

    Args:
        path: of the file.
        dtype: that it must have, as numpy writes it (`<i8`).
        shape: that it must have.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not an .npy file of this type and shape, of the right length.
    """
    import numpy as np

    with _opened(path) as file:
        offset, size = _check_header(file, dtype, shape)
        if (actual := os.fstat(file.fileno()).st_size) != offset + size:
            raise ValueError(f"{actual} bytes, but its header says {offset + size}")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def array_of(content: bytes, dtype: str, shape: tuple[int, ...]) -> "npt.NDArray[Any]":
    """The array in the bytes of an .npy file.  Raises ValueError as :func:`map_array` does."""
    import io

    import numpy as np

    offset, size = _check_header(io.BytesIO(content), dtype, shape)
    if len(content) != offset + size:
        raise ValueError(f"{len(content)} bytes, but its header says {offset + size}")
    return np.frombuffer(content, dtype=dtype, offset=offset).reshape(shape)


def _check_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Where the values of an .npy file begin, and their bytes."""
    import numpy as np

    start = file.read(_LARGEST_HEADER)
    found = _header(start)
    if found is None:
        raise ValueError("not an .npy file")
    kind, actual, offset = found
    if kind != np.dtype(dtype) or actual != shape:
        raise ValueError(f"{kind} {actual}, but it must be {np.dtype(dtype)} {shape}")
    return offset, math.prod(shape) * kind.itemsize


def _header(start: bytes) -> "tuple[np.dtype[Any], tuple[int, ...], int] | None":
    """Type, shape and length of an .npy header as numpy writes it: version 1, C order.  None if it is none."""
    import numpy as np

    size = 10 + int.from_bytes(start[8:10], "little")
    found = _NPY_HEADER.fullmatch(start[10:size]) if start[:8] == _NPY_MAGIC and size <= len(start) else None
    if found is None:
        return None
    shape = tuple(int(length) for length in found["shape"].decode().replace(",", " ").split())
    return np.dtype(found["dtype"].decode()), shape, size


def _opened(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ValueError("it is not a regular file")


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if depth > DEEPEST_JSON:
            break
    return depth
