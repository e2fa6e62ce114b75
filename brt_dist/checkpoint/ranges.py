"""Reads ranges of bytes from a file, wherever it is.  Does not need torch."""

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

_CHUNK = 8 << 20  # bytes hashed at once


class RangeReader(ABC):
    """A file that is read in parts; threads may share it.  Its methods raise OSError."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Size of the file in bytes."""

    @abstractmethod
    def read_into(self, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `begin` on.

        Raises:
            OSError: the file ends before that.
        """

    def read(self, begin: int, count: int) -> bytes:
        """`count` bytes from `begin` on."""
        found = bytearray(count)
        self.read_into(begin, memoryview(found))
        return bytes(found)

    def sha256(self) -> str:
        """The sha256 of the whole file, in hexadecimal."""
        digest, size = hashlib.sha256(), self.size
        chunk = memoryview(bytearray(min(_CHUNK, size)))
        for begin in range(0, size, _CHUNK):
            part = chunk[: min(_CHUNK, size - begin)]
            self.read_into(begin, part)
            digest.update(part)
        return digest.hexdigest()

    def close(self) -> None:  # noqa: B027 - nothing to do where nothing is held open
        """Close the file."""


class LocalFile(RangeReader):
    """A file on a file system.  Not memory-mapped: a mapping reads ahead, and a failed read kills the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_into(self, begin: int, buffer: memoryview) -> None:
        while len(buffer):
            count = os.preadv(self._descriptor, [buffer], begin)
            if not count:
                raise OSError(f"{self._path} ends at {begin} bytes")
            begin, buffer = begin + count, buffer[count:]

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
