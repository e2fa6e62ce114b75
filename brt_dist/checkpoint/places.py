"""Resolves what a user may name as a place of checkpoints: a run directory, a folder or URL, or a single checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brt_dist.checkpoint.manifest import MANIFEST, folder_name, step_of
from brt_dist.checkpoint.open_storage import open_storage
from brt_dist.checkpoint.storage import FolderStorage, Storage
from brt_dist.config.schema import RunConfig
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.files import is_url
from brt_dist.run_directory import RunDirectory
from brt_dist.unreachable import unreachable


@dataclass(frozen=True)
class Place:
    """A place of checkpoints.

    Attributes:
        storage: where the checkpoints are.
        run: the config's section `run`, if a run directory was named.
        name: the checkpoint, if a single one was named.
    """

    storage: Storage
    run: RunConfig | None = None
    name: str | None = None

    def names(self) -> list[str]:
        """All checkpoints in ascending order of steps, or the single one that was named.

        Raises:
            CheckpointError: there is none.
            PlatformError: the storage does not respond.
        """
        with answering(self.storage):
            found = self.storage.names()
        if self.name is not None:
            found = [name for name in found if name == self.name]
        if not found:
            raise CheckpointError(f"no checkpoint{f' {self.name}' if self.name else ''} at {self.storage}")
        return found

    def of_step(self, step: int) -> str:
        """Name of the checkpoint of `step`.

        Raises:
            CheckpointError: there is none; the message names the nearest.
        """
        steps = [number for number in map(step_of, self.names()) if number is not None]
        if step not in steps:
            nearest = min(steps, key=lambda other: (abs(other - step), other))
            raise CheckpointError(f"{self.storage} has no checkpoint of step {step}; nearest: {nearest}")
        return folder_name(step)


def find_place(where: str) -> Place:
    """Resolve a path or URL to a place of checkpoints.

    Raises:
        CheckpointError: `where` is not such a place.
        ConfigError: it is a run directory whose config cannot be read.
    """
    if is_url(where):
        parent, _, last = where.rstrip("/").rpartition("/")
        return Place(open_storage(where)) if step_of(last) is None else Place(open_storage(parent), name=last)
    folder = Path(where.removeprefix("file://"))
    if RunDirectory(folder).is_run and not (folder / "config.json").is_file():
        from brt_dist.config.loading import load

        run = load(RunDirectory(folder).config).config.run
        return Place(open_storage(run.checkpoints or RunDirectory(folder).checkpoints), run)
    if step_of(folder.resolve().name) is not None and folder.is_dir():
        return Place(FolderStorage(folder.resolve().parent), name=folder.resolve().name)
    if folder.is_dir() and (FolderStorage(folder).names() or not any(folder.iterdir())):
        return Place(FolderStorage(folder))
    what = "does not exist" if not folder.exists() else "is neither a run directory nor a folder with checkpoints"
    raise CheckpointError(f"{where} {what}; a run directory contains config.yaml, a checkpoint {MANIFEST}")


@contextmanager
def answering(storage: Storage) -> Iterator[None]:
    """Turn an OSError of the storage into a PlatformError."""
    try:
        yield
    except OSError as error:
        if (problem := unreachable(str(storage), error)) is not None:
            raise PlatformError(f"{storage}: {problem}; nearest: a copy of the checkpoints on this machine") from error
        raise PlatformError(f"cannot reach the checkpoints at {storage}: {error}") from error
