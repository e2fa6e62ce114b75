"""Find the newest checkpoint that is whole, and read from it whatever a rank needs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from brt_dist.checkpoint.manifest import FileEntry, Manifest
from brt_dist.checkpoint.storage import Storage, UnreachableError
from brt_dist.checkpoint.tensor_file import TensorFileReader
from brt_dist.checkpoint.verification import read_manifest, verify_file
from brt_dist.errors import CheckpointError, PlatformError
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
            verify_file(self._storage, self.name, self.manifest, entry)

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
        PlatformError: the storage does not answer, so which one is the newest cannot be known.
    """
    try:
        names = newest_first(storage)
    except OSError as error:
        raise PlatformError(f"checkpoints at {storage} cannot be listed: {error}") from error
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
    except UnreachableError as error:  # it may be whole: an older one in its place would be a loss
        raise PlatformError(f"checkpoint {storage}/{name} cannot be read: {error}") from error
    except (CheckpointError, OSError) as error:
        return checkpoint, str(error)
    return checkpoint, None
