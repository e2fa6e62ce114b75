"""Tensor files in the safetensors format, which other tools can open and which contains no code.

The library reads them.  We write them ourselves, because the library needs all tensors of a file in memory at once;
here they are written one by one as they arrive, and hashed on the way.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from brt_dist.errors import CheckpointError
from brt_dist.parallel.pieces import LogicalTensor, Region

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def code_of(dtype: torch.dtype) -> str:
    """The format's name of a type, such as F32."""
    return _CODES[dtype]


def name_in_file(name: str) -> str:
    """A logical name without its kind, which is the folder of the file."""
    return name.partition("/")[2]


class TensorFileWriter:
    """Writes a tensor file, one tensor per call of :meth:`write`.

    Args:
        file: to write to.
        tensors: what will be written, in order.
        metadata: strings for the header, which other programs may need.

    Attributes:
        bytes: how much was written so far.
    """

    def __init__(
        self, file: IO[bytes], tensors: Sequence[LogicalTensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._file, self._tensors, self._next = file, tensors, 0
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for tensor in tensors:
            place = [offset, offset + tensor.bytes]
            described = {"dtype": code_of(tensor.dtype), "shape": tensor.shape, "data_offsets": place}
            header[name_in_file(tensor.name)] = described
            offset = place[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._put(len(text).to_bytes(8, "little"))
        self._put(text)

    def write(self, values: Tensor) -> None:
        """Write the next tensor, whole, on the host."""
        expected = self._tensors[self._next]
        if tuple(values.shape) != expected.shape or values.dtype != expected.dtype:
            raise RuntimeError(f"expected {expected}, got {tuple(values.shape)} of {values.dtype}")
        self._next += 1
        self._put(values.contiguous().view(-1).view(torch.uint8).numpy().data)

    @property
    def sha256(self) -> str:
        """Hash of everything written so far."""
        return self._sha256.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)


class TensorFileReader:
    """Reads regions of the tensors in a file, and nothing else of it.  Close it, or use it in `with`.

    Args:
        path: of the file.

    Raises:
        CheckpointError: it is not a tensor file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._file.__enter__()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable tensor file ({error})") from error

    def __enter__(self) -> "TensorFileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.__exit__(None, None, None)

    def read(self, tensor: LogicalTensor, region: Region) -> Tensor:
        """Read a region.

        Returns:
            Its elements, (region.size,).

        Raises:
            CheckpointError: the file has no such tensor, or it has a different shape.
        """
        try:
            found = self._file.get_slice(name_in_file(tensor.name))
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} has no tensor {name_in_file(tensor.name)} ({error})") from error
        if tuple(found.get_shape()) != tensor.shape:
            raise CheckpointError(
                f"{self._path}: tensor {name_in_file(tensor.name)} has shape {tuple(found.get_shape())}, "
                f"expected {tensor.shape}"
            )
        values: Tensor = region.take(lambda slices: found[slices])
        return values
