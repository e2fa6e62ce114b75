"""Where checkpoints are kept: a folder (local disk, NFS, Lustre) or a prefix in an object store (`s3://...`).

A checkpoint is a name (`step_00000012`) with files.  It exists when its manifest does: everything else is written
before, under a name that no reader looks at where the storage can rename, and in place where it cannot.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from brt_dist.checkpoint.manifest import MANIFEST, step_of
from brt_dist.errors import PlatformError
from brt_dist.files import sync_directory, write_atomic

LATEST = "latest"


class UnreachableError(OSError):
    """The storage does not answer as it should.  That says nothing about what it holds."""


class Storage(ABC):
    """What saving and loading need of a place.  OSError comes through from all methods."""

    @abstractmethod
    def names(self) -> list[str]:
        """Checkpoints that have a manifest, from the first step to the last."""

    @abstractmethod
    def latest(self) -> str | None:
        """What the last save called the newest; a hint, as it is written after the fact."""

    @abstractmethod
    def prepare(self, name: str) -> None:
        """Remove what earlier saves left half done, and make room for the checkpoint `name`."""

    @abstractmethod
    def create(self, name: str, file: str) -> Any:
        """Context manager: a binary file of the checkpoint that is being made; durable at the end of the block."""

    @abstractmethod
    def publish(self, name: str, manifest: str) -> None:
        """All files are there: make it a checkpoint, and the latest."""

    @abstractmethod
    def manifest(self, name: str) -> str:
        """Text of its manifest."""

    @abstractmethod
    def size(self, name: str, file: str) -> int | None:
        """Bytes of a file, none where there is none."""

    @abstractmethod
    def local(self, name: str, file: str) -> Path:
        """A path under which the file can be read; in an object store a copy, until :meth:`forget`."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a checkpoint; one that is cut short leaves nothing that looks whole."""

    def release(self, name: str, file: str) -> None:  # noqa: B027 - nothing to do where nothing was copied
        """The copy that :meth:`local` made of this file is not needed any more."""

    def forget(self) -> None:  # noqa: B027
        """Remove the copies that :meth:`local` made."""

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs from saving here meanwhile.  PlatformError: one does."""
        yield


class FolderStorage(Storage):
    """A folder of a file system that all ranks see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        found = (path.name for path in self._folder.iterdir() if (path / MANIFEST).is_file())
        return sorted(name for name in found if step_of(name) is not None)

    def latest(self) -> str | None:
        try:
            return (self._folder / LATEST).read_text().strip()
        except OSError:
            return None

    def prepare(self, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._folder.glob(".step_*"):
            shutil.rmtree(left_over)
        self._draft(name).mkdir()

    @contextmanager
    def create(self, name: str, file: str) -> Iterator[IO[bytes]]:
        path = self._draft(name) / file
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        sync_directory(path.parent)

    def publish(self, name: str, manifest: str) -> None:
        draft, final = self._draft(name), self._folder / name
        write_atomic(draft / MANIFEST, manifest)
        if final.exists():  # a step that was run again: the one before it was damaged, or is being replaced
            replaced = self._folder / f".{name}.replaced"
            final.rename(replaced)
            draft.rename(final)
            shutil.rmtree(replaced)
        else:
            draft.rename(final)
        sync_directory(self._folder)
        self._point_at(name)

    def manifest(self, name: str) -> str:
        return (self._folder / name / MANIFEST).read_text()

    def size(self, name: str, file: str) -> int | None:
        path = self._folder / name / file
        return path.stat().st_size if path.is_file() else None

    def local(self, name: str, file: str) -> Path:
        return self._folder / name / file

    def remove(self, name: str) -> None:
        # without its manifest a folder is no checkpoint; another process may remove it at the same time
        (self._folder / name / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / ".lock", timeout=0)
        try:
            held = lock.acquire()
        except Timeout:
            raise PlatformError(
                f"another run saves its checkpoints to {self._folder}; end it, or set another run.directory"
            ) from None
        with held:
            yield

    def _draft(self, name: str) -> Path:
        return self._folder / f".{name}.draft"

    def _point_at(self, name: str) -> None:
        path = self._folder / LATEST
        try:
            write_atomic(path, name + "\n")
        except OSError:
            # some network file systems do not rename over a file; without `latest` the newest step counts
            path.unlink(missing_ok=True)
            write_atomic(path, name + "\n")
