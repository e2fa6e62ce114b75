"""Save without stopping: a copy to host memory while training waits, the rest in the background.

At most one save is under way.  A new one waits for the one before (back-pressure), so memory is bounded by one copy of
what this rank writes.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from brt_dist.checkpoint.assembly import Exchange, FilePlan, plan_files, sent_by
from brt_dist.checkpoint.manifest import FileEntry, Manifest, TensorEntry, folder_name
from brt_dist.checkpoint.storage import Storage
from brt_dist.checkpoint.tensor_file import TensorFileWriter, code_of
from brt_dist.errors import CheckpointError
from brt_dist.parallel.pieces import Piece


@dataclass(frozen=True)
class Saved:
    """A save that is done.  seconds: from its begin to its publication; stall_seconds: while training waited."""

    name: str
    step: int
    bytes: int
    seconds: float
    stall_seconds: float


class Saver:
    """Saves of one run, on one rank.  All methods are collective but :meth:`finished`.

    Args:
        storage: where to.
        rank, ranks: this one's number, and how many.
        after: called on rank 0 when a checkpoint is there, with its step (removes old ones).
    """

    def __init__(self, storage: Storage, rank: int, ranks: int, after: Callable[[int], None]) -> None:
        self._storage, self._rank, self._ranks, self._after = storage, rank, ranks, after
        # on host memory, and used by the background thread alone, so its traffic cannot mix with that of training
        self._group = dist.new_group(backend="gloo")
        self._plans: list[FilePlan] | None = None
        self._thread: threading.Thread | None = None
        self._saved: list[Saved] = []
        self._problem: str | None = None

    def save(self, manifest: Manifest, pieces: Sequence[Piece]) -> float:
        """Begin a save; returns the seconds for which training waited.

        Args:
            manifest: complete but for `files` and `tensors`.
            pieces: of this rank; they may change as soon as this returns.

        Raises:
            CheckpointError: the save before this one failed.
        """
        began = time.perf_counter()
        self.wait()
        if self._plans is None:
            self._plans = plan_files(self._gather([(piece.tensor, piece.region) for piece in pieces]))
        copies = {index: _on_host(pieces[index].values) for index in sorted(sent_by(self._plans, self._rank))}
        stall = time.perf_counter() - began
        self._thread = threading.Thread(
            target=self._run, args=(manifest, copies, began, stall), name="checkpoint", daemon=True
        )
        self._thread.start()
        return stall

    def finished(self) -> list[Saved]:
        """Saves that were done since the last call; does not wait.

        Raises:
            CheckpointError: a save failed; the checkpoints before it are untouched.
        """
        if self._problem:
            raise CheckpointError(self._problem)
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Until nothing is under way.  CheckpointError: as :meth:`finished`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._problem:
            raise CheckpointError(self._problem)

    def close(self) -> None:
        """Wait, and give back the process group."""
        if self._thread is not None:
            self._thread.join()
        dist.destroy_process_group(self._group)

    def _run(self, manifest: Manifest, copies: Mapping[int, Tensor], began: float, stall: float) -> None:
        name = folder_name(manifest.step)
        try:
            problem, written = self._write(name, manifest, copies)
        except Exception as error:  # another rank is gone, most likely: nobody is left to tell
            self._problem = f"checkpoint {name} could not be saved: {type(error).__name__}: {error}"
            return
        if problem:
            self._problem = f"checkpoint {name} could not be saved: {problem}; those before it are untouched"
        else:
            self._saved.append(Saved(name, manifest.step, written, time.perf_counter() - began, stall))

    def _write(self, name: str, manifest: Manifest, copies: Mapping[int, Tensor]) -> tuple[str | None, int]:
        """The problem that some rank had, if any, the same on all ranks; and the bytes of all files."""
        plans = self._plans or []
        problem = self._on_first_rank(lambda: self._storage.prepare(name))
        if problem:
            return problem, 0
        exchange = Exchange(plans, copies, self._rank, self._group)
        entries: list[FileEntry] = []
        mine: str | None = None
        for plan, tensors in exchange.files():
            if mine is None:
                try:
                    entries.append(self._write_file(name, plan, tensors))
                    continue
                except OSError as error:
                    mine = f"rank {self._rank}: {self._storage}/{name}/{plan.name}: {error}"
            for _ in tensors:  # the others must get rid of what they send
                pass
        exchange.finish()
        told = self._gather((mine, entries))
        problem = next((text for text, _ in told if text), None)
        if problem:
            return problem, 0
        files = sorted((entry for _, found in told for entry in found), key=lambda entry: entry.name)
        whole = replace(manifest, files=tuple(files), tensors=_tensors(plans))
        return self._on_first_rank(lambda: self._publish(name, whole)), whole.total_bytes

    def _write_file(self, name: str, plan: FilePlan, tensors: Iterator[Tensor]) -> FileEntry:
        with self._storage.create(name, plan.name) as file:
            writer = TensorFileWriter(file, plan.logical)
            for tensor in tensors:
                writer.write(tensor)
        return FileEntry(plan.name, writer.bytes, writer.sha256)

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


def _tensors(plans: Sequence[FilePlan]) -> dict[str, TensorEntry]:
    entries = {
        tensor.name: TensorEntry(plan.name, code_of(tensor.dtype), tensor.shape)
        for plan in plans
        for tensor in plan.logical
    }
    return dict(sorted(entries.items()))
