"""Find the newest checkpoint that is whole, and read from it whatever a rank needs."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from brt_dist.checkpoint.manifest import FileEntry, Manifest
from brt_dist.checkpoint.storage import Storage
from brt_dist.checkpoint.tensor_file import TensorFileReader
from brt_dist.errors import CheckpointError
from brt_dist.parallel.pieces import LogicalTensor, Region

Gather = Callable[[str | None], list[str | None]]
"""Collective: what each rank says of its share of the files."""


class Checkpoint:
    """A checkpoint that is read from.  Close it, or use it in `with`."""

    def __init__(self, storage: Storage, name: str, manifest: Manifest) -> None:
        self.name, self.manifest = name, manifest
        self._storage = storage
        self._readers: dict[str, TensorFileReader] = {}

    @classmethod
    def open(cls, storage: Storage, name: str) -> "Checkpoint":
        """CheckpointError: no manifest, a damaged one, or one of another format."""
        return cls(storage, name, read_manifest(storage, name))

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}
        self._storage.forget()

    def verify(self, files: Iterable[FileEntry] | None = None) -> None:
        """Compare files (all, if none are named) with the manifest: there, size, content.

        Raises:
            CheckpointError: the first that is not as it should be.
        """
        for entry in self.manifest.files if files is None else files:
            self._verify(entry)

    def read(self, tensor: LogicalTensor, region: Region) -> Tensor:
        """Values of the region (region.size,), in the saved type.

        Memory of streams that were not there is zeros: they begin a document, so nobody looks at it.

        Raises:
            CheckpointError: the checkpoint has no such tensor, or it has another shape.
        """
        entry = self.manifest.tensors.get(tensor.name)
        if entry is None:
            raise CheckpointError(f"{self.name} has no {tensor.name}: it was saved by another model or optimizer")
        if entry.shape == tensor.shape:
            return self._reader(entry.file).read(tensor, region)
        if tensor.name.startswith("memory/") and entry.shape[1:] == tensor.shape[1:]:
            return self._read_streams(tensor, region, entry.shape[0])
        raise CheckpointError(f"{self.name}: {tensor.name} has shape {entry.shape}, this run needs {tensor.shape}")

    def whole(self, name: str) -> Tensor:
        """The logical tensor `name`."""
        entry = self.manifest.tensors[name]
        tensor = LogicalTensor(name, entry.shape, torch.float32)
        return self.read(tensor, Region.whole(entry.shape)).view(entry.shape)

    def _read_streams(self, tensor: LogicalTensor, region: Region, streams: int) -> Tensor:
        first, last = region.box[0]
        held = min(last, streams) - first
        if held <= 0:
            return torch.zeros(region.size, dtype=tensor.dtype)
        saved = LogicalTensor(tensor.name, (streams, *tensor.shape[1:]), tensor.dtype)
        box = ((first, first + held), *region.box[1:])
        values = self._reader(self.manifest.tensors[tensor.name].file).read(saved, Region.of_box(box))
        return torch.cat([values, values.new_zeros(region.size - len(values))])

    def _reader(self, file: str) -> TensorFileReader:
        if file not in self._readers:
            self._readers[file] = TensorFileReader(self._storage.local(self.name, file))
        return self._readers[file]

    def _verify(self, entry: FileEntry) -> None:
        where = f"{self._storage}/{self.name}/{entry.name}"
        size = self._storage.size(self.name, entry.name)
        if size is None:
            raise CheckpointError(f"{where} is missing")
        if size != entry.bytes:
            raise CheckpointError(f"{where} has {size} bytes, the manifest says {entry.bytes}")
        path = self._storage.local(self.name, entry.name)
        if _sha256(path) != entry.sha256:
            raise CheckpointError(f"{where} was altered: its sha256 is not the one in the manifest")
        with TensorFileReader(path) as reader:
            found = {f"{entry.name.partition('/')[0]}/{name}": value for name, value in reader.tensors().items()}
        listed = {
            name: (tensor.dtype, tensor.shape)
            for name, tensor in self.manifest.tensors.items()
            if tensor.file == entry.name
        }
        if found != listed:
            raise CheckpointError(f"{where} holds other tensors than the manifest lists")


def read_manifest(storage: Storage, name: str) -> Manifest:
    """CheckpointError: there is none, or it is damaged or of another format."""
    try:
        text = storage.manifest(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{storage}/{name}: no readable manifest ({error})") from error
    return Manifest.parse(text, f"{storage}/{name}")


def newest_first(storage: Storage) -> list[str]:
    """Names of the checkpoints, from new to old."""
    return storage.names()[::-1]


def open_newest(
    storage: Storage,
    rank: int,
    ranks: int,
    gather: Gather,
    belongs: Callable[[Manifest], None],
    passed_over: Callable[[str], None],
) -> Checkpoint | None:
    """The newest checkpoint that is whole; none where there is none.  Collective: ranks share the work of verifying.

    Args:
        belongs: raises CheckpointError when a sound checkpoint cannot be used by this run.
        passed_over: told of each one that is damaged.

    Raises:
        CheckpointError: there are checkpoints and none is whole, or the newest whole one does not belong to this run.
    """
    names = newest_first(storage)
    for name in names:
        checkpoint, problem = _try(storage, name, rank, ranks)
        problems = [text for text in gather(problem) if text]
        if not problems and checkpoint is not None:
            belongs(checkpoint.manifest)
            return checkpoint
        if checkpoint is not None:
            checkpoint.close()
        passed_over(f"checkpoint {name} is not used: {problems[0]}")
    if names:
        raise CheckpointError(
            f"none of the {len(names)} checkpoints in {storage} can be used; see the log for the reasons. "
            "Move them away to start the run anew."
        )
    return None


def _try(storage: Storage, name: str, rank: int, ranks: int) -> tuple[Checkpoint | None, str | None]:
    checkpoint = None
    try:
        checkpoint = Checkpoint.open(storage, name)
        checkpoint.verify(checkpoint.manifest.files[rank::ranks])
    except (CheckpointError, OSError) as error:
        return checkpoint, str(error)
    return checkpoint, None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
