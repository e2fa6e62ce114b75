"""Tensor files in the safetensors format, which other tools can open and which contains no code.

We read and write them ourselves.  To write a file, the safetensors library needs all tensors in memory at once; we
write and hash them one by one as they arrive.  To read a file, it maps the file into memory; here a rank reads only the
bytes that it keeps, from a disk or an object store.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from brt_dist.checkpoint.ranges import RangeReader
from brt_dist.checkpoint.tensor_header import read_header
from brt_dist.errors import CheckpointError
from brt_dist.model.boxes import runs
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
    """Reads regions of the tensors in a file, and no other bytes of it.  Close it, or use it in `with`.

    Args:
        file: the bytes; closed with the reader.
        where: the place of the file, for messages.

    Raises:
        CheckpointError: it is not a tensor file.
        OSError: it cannot be read.
    """

    def __init__(self, file: RangeReader, where: str) -> None:
        self._file, self._where = file, where
        try:
            self._tensors = read_header(file, where)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> "TensorFileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, tensor: LogicalTensor, region: Region) -> Tensor:
        """Read a region.

        Returns:
            Its elements, (region.size,).

        Raises:
            CheckpointError: the file has no such tensor, or it has a different shape.
            OSError: the file cannot be read.
        """
        name = name_in_file(tensor.name)
        found = self._tensors.get(name)
        if found is None:
            raise CheckpointError(f"{self._where} has no tensor {name}")
        if found.shape != tensor.shape:
            raise CheckpointError(f"{self._where}: tensor {name} has shape {found.shape}, expected {tensor.shape}")
        if found.dtype not in DTYPES:
            raise CheckpointError(f"{self._where}: tensor {name} is {found.dtype}, which is not a type for weights")
        values = torch.empty(region.size, dtype=DTYPES[found.dtype])
        buffer, width, filled = values.view(torch.uint8).numpy().data, values.element_size(), 0
        for first, count in runs(tensor.shape, region.box, region.begin, region.end):
            part = buffer[filled : filled + count * width]
            self._file.read_into(found.begin + first * width, part)
            filled += len(part)
        return values
