"""Where checkpoints are kept: a folder (local disk, NFS, Lustre) or a prefix in an object store (`s3://...`).

A checkpoint is a name (`step_00000012`) with files.  It exists once its manifest does.  All other files are written
first: under a hidden name if the storage can rename, otherwise in place.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from brt_dist.checkpoint.claim import claimed
from brt_dist.checkpoint.manifest import MANIFEST, MANIFEST_LIMIT, sorted_names, step_of
from brt_dist.checkpoint.ranges import LocalFile, RangeReader
from brt_dist.files import sync_directory, write_atomic
from brt_dist.reading import read_text

LATEST = "latest"
_LONGEST_NAME = 256  # bytes of `latest`


class UnreachableError(OSError):
    """The storage does not respond properly, which says nothing about its content."""


class Storage(ABC):
    """A place for checkpoints.  Any method may raise OSError."""

    @abstractmethod
    def names(self) -> list[str]:
        """Checkpoints that have a manifest, in ascending order of steps."""

    def others(self) -> list[str]:
        """Folders with the content of a checkpoint but another name (copies, renamed ones), which do not count."""
        return []

    @abstractmethod
    def latest(self) -> str | None:
        """The name that the last save recorded as the newest; only a hint, because it is written afterwards."""

    @abstractmethod
    def prepare(self, name: str) -> None:
        """Remove leftovers of unfinished saves, and prepare the checkpoint `name`."""

    @abstractmethod
    def create(self, name: str, file: str) -> Any:
        """Context manager: a binary file of the checkpoint being saved; durable at the end of the block."""

    @abstractmethod
    def publish(self, name: str, manifest: str) -> None:
        """Make the checkpoint `name`, whose files are complete, visible, and record it as the latest."""

    @abstractmethod
    def manifest(self, name: str) -> str:
        """The text of a checkpoint's manifest."""

    @abstractmethod
    def size(self, name: str, file: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

    @abstractmethod
    def open(self, name: str, file: str, shared_as: str | None = None) -> RangeReader:
        """Open a file to read ranges of it.

        Args:
            name: of the checkpoint.
            file: of the checkpoint.
            shared_as: digest of its content, if other processes of this node will read parts of it too: data from a
                network is then fetched once for all of them, and kept until they call :meth:`forget`.
        """

    @abstractmethod
    def shrink(self, name: str, manifest: str, files: Iterable[str]) -> None:
        """Replace the manifest of a checkpoint by one without `files`, and then remove these files."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a checkpoint.  If this is interrupted, what remains does not look complete."""

    def forget(self) -> None:  # noqa: B027 - nothing to do where nothing was copied
        """Release what is kept for several processes; the last process of the node removes it."""

    @contextmanager
    def claimed(self, report: Callable[[str], None]) -> Iterator[None]:
        """Context manager: keep other runs from saving here.

        Args:
            report: called with a message if only a weaker method works here.

        Raises:
            PlatformError: another run is saving here.
        """
        yield


class FolderStorage(Storage):
    """A folder on a file system that all ranks share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        found = (path.name for path in self._folder.iterdir() if (path / MANIFEST).is_file())
        return sorted_names(found)

    def others(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        found = (path.name for path in self._folder.glob("step_*") if (path / MANIFEST).is_file())
        return sorted(name for name in found if step_of(name) is None)

    def latest(self) -> str | None:
        try:
            return read_text(self._folder / LATEST, _LONGEST_NAME).strip()
        except (OSError, ValueError):
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
        if final.exists():  # the step ran again, because its checkpoint was damaged or is being replaced
            replaced = self._folder / f".{name}.replaced"
            final.rename(replaced)
            draft.rename(final)
            shutil.rmtree(replaced)
        else:
            draft.rename(final)
        sync_directory(self._folder)
        self._point_at(name)

    def manifest(self, name: str) -> str:
        return read_text(self._folder / name / MANIFEST, MANIFEST_LIMIT)

    def size(self, name: str, file: str) -> int | None:
        path = self._folder / name / file
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str, file: str, shared_as: str | None = None) -> RangeReader:
        return LocalFile(self._folder / name / file)

    def shrink(self, name: str, manifest: str, files: Iterable[str]) -> None:
        folder = self._folder / name
        write_atomic(folder / MANIFEST, manifest)
        for file in files:
            (folder / file).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        # without its manifest a folder is not a checkpoint; another process may remove it at the same time
        (self._folder / name / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    @contextmanager
    def claimed(self, report: Callable[[str], None]) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with claimed(self._folder, report):
            yield

    def _draft(self, name: str) -> Path:
        return self._folder / f".{name}.draft"

    def _point_at(self, name: str) -> None:
        path = self._folder / LATEST
        try:
            write_atomic(path, name + "\n")
        except OSError:
            # some network file systems cannot rename over a file; without `latest`, readers use the newest step
            path.unlink(missing_ok=True)
            write_atomic(path, name + "\n")
