"""Saves in the background: training waits only for a copy to host memory.

At most one save is in progress.  A new one waits for the previous one (back-pressure), so a rank holds at most one
copy of what it sends.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from brt_dist.checkpoint.assembly import Exchange, FileAssignment, assign_files, sent_by
from brt_dist.checkpoint.crew import Crew
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
        crew: the ranks that save together; closed with the saver.
        after: called on rank 0 with the step of each published checkpoint; removes old ones.
    """

    def __init__(self, storage: Storage, crew: Crew, after: Callable[[int], None]) -> None:
        self._storage, self._crew, self._rank, self._after = storage, crew, crew.rank, after
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
            held = self._crew.gather([(piece.tensor, piece.region) for piece in pieces])
            self._assignments = assign_files(held, self._crew.ranks.start)
        copies = {index: pieces[index].on_host() for index in sorted(sent_by(self._assignments, self._rank))}
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
        """Wait for the save in progress, and close the connections to other ranks."""
        if self._thread is not None:
            self._thread.join()
        self._crew.close()

    def _run(self, manifest: Manifest, copies: Mapping[int, Tensor], began: float, stall: float) -> None:
        name = folder_name(manifest.step)
        try:
            problem, written = self._write(name, manifest, copies)
        except Exception as error:  # another rank is probably gone, so the ranks cannot agree on anything
            self._problem = f"could not save checkpoint {name}: {type(error).__name__}: {error}"
            return
        if problem:
            self._problem = f"could not save checkpoint {name}: {problem}; earlier checkpoints are untouched"
        else:
            self._saved.append(Saved(name, manifest.step, written, time.perf_counter() - began, stall))

    def _write(self, name: str, manifest: Manifest, copies: Mapping[int, Tensor]) -> tuple[str | None, int]:
        """The first problem of any rank, the same on all ranks, and the bytes of all files."""
        problem = self._crew.on_first_rank(lambda: self._problem_of(lambda: self._storage.prepare(name)))
        if problem:
            return problem, 0
        exchange = Exchange(self._assignments or [], copies, self._rank, self._crew.links)
        written: list[_Written] = []
        mine: str | None = None
        for assignment, tensors in exchange.files():
            if mine is None:
                try:
                    written.append(self._write_file(name, assignment, tensors))
                    continue
                except OSError as error:
                    mine = f"rank {self._rank}: {self._storage}/{name}/{assignment.name}: {error}"
            for _ in tensors:  # receive what the others send, or they would wait forever
                pass
        exchange.finish()
        told = self._crew.up([(mine, [asdict(file) for file in written])])
        problem, size = self._crew.on_first_rank(lambda: self._publish(name, manifest, told or []))
        return problem, size

    def _write_file(self, name: str, assignment: FileAssignment, tensors: Iterator[Tensor]) -> "_Written":
        with self._storage.create(name, assignment.name) as file:
            writer = TensorFileWriter(file, assignment.logical)
            for tensor in tensors:
                writer.write(tensor)
        entries = {
            tensor.name: TensorEntry(assignment.name, code_of(tensor.dtype), tensor.shape)
            for tensor in assignment.logical
        }
        return _Written(FileEntry(assignment.name, writer.bytes, writer.sha256), entries)

    def _publish(self, name: str, manifest: Manifest, told: Sequence[Any]) -> tuple[str | None, int]:
        """Publish the checkpoint on rank 0, unless a rank has a problem; the first problem, and the bytes of all files.

        Args:
            told: of each rank, its problem and the files that it wrote, as JSON.
        """
        problem = next((text for text, _ in told if text), None)
        if problem:
            return problem, 0
        written = _WRITTEN.validate_python([file for _, files in told for file in files])
        files = sorted((one.file for one in written), key=lambda entry: entry.name)
        tensors = dict(sorted(item for one in written for item in one.tensors.items()))
        whole = replace(manifest, files=tuple(files), tensors=tensors)

        def publish() -> None:
            self._storage.publish(name, whole.dump())
            self._after(manifest.step)

        return self._problem_of(publish), whole.total_bytes

    def _problem_of(self, action: Callable[[], None]) -> str | None:
        try:
            action()
        except (OSError, CheckpointError) as error:
            return f"{self._storage}: {error}"
        return None


@dataclass(frozen=True)
class _Written:
    """A file that a rank wrote, and the tensors in it."""

    file: FileEntry
    tensors: dict[str, TensorEntry]


_WRITTEN = TypeAdapter(list[_Written])
