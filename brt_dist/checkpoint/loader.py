"""Finds the newest complete checkpoint and reads from it what a rank needs."""

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
"""Collective: gathers the problem that each rank found in its share of the files, None if it found none."""


class Checkpoint:
    """A checkpoint that is open for reading.  Close it, or use it in `with`."""

    def __init__(self, storage: Storage, name: str, manifest: Manifest) -> None:
        self.name, self.manifest = name, manifest
        self._storage = storage
        self._readers: dict[str, TensorFileReader] = {}

    @classmethod
    def open(cls, storage: Storage, name: str) -> "Checkpoint":
        """Open a checkpoint.

        Raises:
            CheckpointError: its manifest is missing, damaged, or of another format.
        """
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
        """Compare files with the manifest: existence, size and content.

        Args:
            files: which files; None: all.

        Raises:
            CheckpointError: for the first file that does not match.
        """
        for entry in self.manifest.files if files is None else files:
            verify_file(self._storage, self.name, self.manifest, entry)

    def read(self, tensor: LogicalTensor, region: Region) -> Tensor:
        """Read a region of a logical tensor.

        Memory of streams that the checkpoint does not have reads as zeros, as does all memory of a checkpoint without
        any: these streams start with cleared memory, so the values are not used.

        Returns:
            The values, (region.size,), in the saved type.

        Raises:
            CheckpointError: the checkpoint has no such tensor, or it has a different shape.
            PlatformError: the storage does not respond.
        """
        entry = self.manifest.tensors.get(tensor.name)
        if entry is None and tensor.name.startswith("memory/") and not self.manifest.has_memory:
            return torch.zeros(region.size, dtype=tensor.dtype)
        if entry is None:
            raise CheckpointError(f"{self.name} has no {tensor.name}: a different model or optimizer saved it")
        try:
            if entry.shape == tensor.shape:
                return self._reader(entry.file).read(tensor, region)
            if tensor.name.startswith("memory/") and entry.shape[1:] == tensor.shape[1:]:
                return self._read_streams(tensor, region, entry.shape[0])
        except OSError as error:
            raise PlatformError(f"cannot read {self._storage}/{self.name}/{entry.file}: {error}") from error
        raise CheckpointError(f"{self.name}: {tensor.name} has shape {entry.shape}, but this run needs {tensor.shape}")

    def part(self, name: str, region: Region) -> Tensor:
        """A region of the logical tensor `name` as it was saved, (region.size,)."""
        return self.read(LogicalTensor(name, self.manifest.tensors[name].shape, torch.float32), region)

    def whole(self, name: str) -> Tensor:
        """The whole logical tensor `name`."""
        shape = self.manifest.tensors[name].shape
        return self.part(name, Region.whole(shape)).view(shape)

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
            digest = next(entry.sha256 for entry in self.manifest.files if entry.name == file)
            opened = self._storage.open(self.name, file, shared_as=digest)
            self._readers[file] = TensorFileReader(opened, f"{self._storage}/{self.name}/{file}")
        return self._readers[file]


def newest_first(storage: Storage) -> list[str]:
    """Names of the checkpoints, newest first."""
    return storage.names()[::-1]


def open_newest(
    storage: Storage,
    rank: int,
    ranks: int,
    gather: Gather,
    belongs: Callable[[Manifest], None],
    passed_over: Callable[[str], None],
) -> Checkpoint | None:
    """Open the newest complete checkpoint.  Collective: the ranks share the work of verifying it.

    Args:
        storage: where the checkpoints are.
        rank: this rank.
        ranks: number of ranks.
        gather: collects a value from all ranks.
        belongs: raises CheckpointError if this run cannot use a complete checkpoint.
        passed_over: called with a message about each damaged checkpoint.

    Returns:
        The checkpoint; None if there are no checkpoints.

    Raises:
        CheckpointError: there are checkpoints but none is complete, or the newest complete one does not fit this run.
        PlatformError: the storage does not respond, so the newest checkpoint is unknown.
    """
    try:
        names = newest_first(storage)
    except OSError as error:
        raise PlatformError(f"cannot list the checkpoints at {storage}: {error}") from error
    for name in names:
        checkpoint, problem = _try(storage, name, rank, ranks)
        problems = [text for text in gather(problem) if text]
        if not problems and checkpoint is not None:
            belongs(checkpoint.manifest)
            return checkpoint
        if checkpoint is not None:
            checkpoint.close()
        passed_over(f"skipping damaged checkpoint {name}: {problems[0]}")
    if names:
        raise CheckpointError(
            f"none of the {len(names)} checkpoints in {storage} can be used; the log has the reasons. "
            "Move them away to start the run from scratch."
        )
    return None


def _try(storage: Storage, name: str, rank: int, ranks: int) -> tuple[Checkpoint | None, str | None]:
    checkpoint = None
    try:
        checkpoint = Checkpoint.open(storage, name)
        checkpoint.verify(checkpoint.manifest.files[rank::ranks])
    except UnreachableError as error:  # it may be complete, and an older one would lose progress
        raise PlatformError(f"cannot read checkpoint {storage}/{name}: {error}") from error
    except (CheckpointError, OSError) as error:
        return checkpoint, str(error)
    return checkpoint, None
