"""Saves in the background: training waits only for a copy to host memory.

At most one save is in progress.  A new one waits for the previous one (back-pressure), so a rank holds at most one
copy of what it sends.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from brt_dist.checkpoint.assembly import Exchange, FileAssignment, assign_files, sent_by
from brt_dist.checkpoint.manifest import FileEntry, Manifest, TensorEntry, folder_name
from brt_dist.checkpoint.storage import Storage
from brt_dist.checkpoint.tensor_file import TensorFileWriter, code_of
from brt_dist.errors import CheckpointError
from brt_dist.parallel.pieces import Piece


@dataclass(frozen=True)
class Saved:
    """A finished save.

    Attributes:
        name: of the checkpoint.
        step: its step.
        bytes: size of all its files.
        seconds: from the start of the save to its publication.
        stall_seconds: how long training waited.
    """

    name: str
    step: int
    bytes: int
    seconds: float
    stall_seconds: float


class Saver:
    """Saves the checkpoints of a run, on one rank.  All methods but :meth:`finished` are collective.

    Args:
        storage: where to save.
        rank: this rank.
        ranks: number of ranks.
        after: called on rank 0 with the step of each published checkpoint; removes old ones.
    """

    def __init__(self, storage: Storage, rank: int, ranks: int, after: Callable[[int], None]) -> None:
        self._storage, self._rank, self._ranks, self._after = storage, rank, ranks, after
        # on host memory and for the background thread alone, so that its traffic cannot mix with training's
        self._group = dist.new_group(backend="gloo")
        self._assignments: list[FileAssignment] | None = None
        self._thread: threading.Thread | None = None
        self._saved: list[Saved] = []
        self._problem: str | None = None

    def save(self, manifest: Manifest, pieces: Sequence[Piece]) -> float:
        """Start a save.

        Args:
            manifest: complete except for `files` and `tensors`.
            pieces: of this rank; they may change as soon as this returns.

        Returns:
            Seconds that training waited.

        Raises:
            CheckpointError: the previous save failed.
        """
        began = time.perf_counter()
        self.wait()
        if self._assignments is None:
            self._assignments = assign_files(self._gather([(piece.tensor, piece.region) for piece in pieces]))
        copies = {index: _on_host(pieces[index].values) for index in sorted(sent_by(self._assignments, self._rank))}
        stall = time.perf_counter() - began
        self._thread = threading.Thread(
            target=self._run, args=(manifest, copies, began, stall), name="checkpoint", daemon=True
        )
        self._thread.start()
        return stall

    def finished(self) -> list[Saved]:
        """Saves that have finished since the last call; does not wait.

        Raises:
            CheckpointError: a save failed; earlier checkpoints are untouched.
        """
        if self._problem:
            raise CheckpointError(self._problem)
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Wait for the save in progress, if any.

        Raises:
            CheckpointError: as for :meth:`finished`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._problem:
            raise CheckpointError(self._problem)

    def close(self) -> None:
        """Wait for the save in progress, and release the process group."""
        if self._thread is not None:
            self._thread.join()
        dist.destroy_process_group(self._group)

    def _run(self, manifest: Manifest, copies: Mapping[int, Tensor], began: float, stall: float) -> None:
        name = folder_name(manifest.step)
        try:
            problem, written = self._write(name, manifest, copies)
        except Exception as error:  # most likely another rank is gone, so nothing can be agreed on
            self._problem = f"could not save checkpoint {name}: {type(error).__name__}: {error}"
            return
        if problem:
            self._problem = f"could not save checkpoint {name}: {problem}; earlier checkpoints are untouched"
        else:
            self._saved.append(Saved(name, manifest.step, written, time.perf_counter() - began, stall))

    def _write(self, name: str, manifest: Manifest, copies: Mapping[int, Tensor]) -> tuple[str | None, int]:
        """The first problem of any rank, the same on all ranks, and the bytes of all files."""
        assignments = self._assignments or []
        problem = self._on_first_rank(lambda: self._storage.prepare(name))
        if problem:
            return problem, 0
        exchange = Exchange(assignments, copies, self._rank, self._group)
        entries: list[FileEntry] = []
        mine: str | None = None
        for assignment, tensors in exchange.files():
            if mine is None:
                try:
                    entries.append(self._write_file(name, assignment, tensors))
                    continue
                except OSError as error:
                    mine = f"rank {self._rank}: {self._storage}/{name}/{assignment.name}: {error}"
            for _ in tensors:  # receive what the others send, or they would wait forever
                pass
        exchange.finish()
        told = self._gather((mine, entries))
        problem = next((text for text, _ in told if text), None)
        if problem:
            return problem, 0
        files = sorted((entry for _, found in told for entry in found), key=lambda entry: entry.name)
        whole = replace(manifest, files=tuple(files), tensors=_tensors(assignments))
        return self._on_first_rank(lambda: self._publish(name, whole)), whole.total_bytes

    def _write_file(self, name: str, assignment: FileAssignment, tensors: Iterator[Tensor]) -> FileEntry:
        with self._storage.create(name, assignment.name) as file:
            writer = TensorFileWriter(file, assignment.logical)
            for tensor in tensors:
                writer.write(tensor)
        return FileEntry(assignment.name, writer.bytes, writer.sha256)

    def _publish(self, name: str, manifest: Manifest) -> None:
        self._storage.publish(name, manifest.dump())
        self._after(manifest.step)

    def _on_first_rank(self, action: Callable[[], None]) -> str | None:
        problem: str | None = None
        if self._rank == 0:
            try:
                action()
            except (OSError, CheckpointError) as error:
                problem = f"{self._storage}: {error}"
        return self._gather(problem)[0]

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._ranks
        dist.all_gather_object(values, value, self._group)
        return values


def _on_host(values: Tensor) -> Tensor:
    return values.detach().to("cpu", copy=True)


def _tensors(assignments: Sequence[FileAssignment]) -> dict[str, TensorEntry]:
    entries = {
        tensor.name: TensorEntry(assignment.name, code_of(tensor.dtype), tensor.shape)
        for assignment in assignments
        for tensor in assignment.logical
    }
    return dict(sorted(entries.items()))
