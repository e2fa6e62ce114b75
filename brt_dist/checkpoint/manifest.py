"""The readable half of a checkpoint: `manifest.json`, what is in the folder and what it belongs to."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brt_dist.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "latest"


@dataclass(frozen=True)
class FileEntry:
    """One tensor file: name in the folder, size in bytes, sha256 of the content."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path.name, path.stat().st_size, digest)


@dataclass(frozen=True)
class Manifest:
    """Everything of a checkpoint that is not a tensor.

    Attributes:
        step: finished optimizer steps.
        tokens: unmasked tokens seen so far.
        cursor: place of all streams in the corpus, as the schedule writes it.
        layout: layout that saved it.
        config: the run's config, resolved.
        dataset: digest of the training dataset.
        versions: of the libraries that matter to the numbers.
        files: one for each rank, in the order of ranks.
    """

    step: int
    tokens: int
    cursor: dict[str, Any]
    layout: dict[str, Any]
    config: dict[str, Any]
    dataset: str
    versions: dict[str, str]
    files: tuple[FileEntry, ...]
    format: int = FORMAT

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read `folder`'s manifest.

        Raises:
            CheckpointError: there is none, it is damaged, or it was written by a newer version.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: no readable {MANIFEST} ({error})") from error
        if values.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}: checkpoint format {values.get('format')}, this version of brt_dist reads format {FORMAT}"
            )
        try:
            values["files"] = tuple(FileEntry(**entry) for entry in values["files"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a manifest of a checkpoint ({error})") from error


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def newest_first(checkpoints: Path) -> list[Path]:
    """Folders of complete checkpoints, the one named by `latest` before the others, then from new to old."""
    folders = sorted((path for path in checkpoints.glob("step_*") if (path / MANIFEST).is_file()), reverse=True)
    try:
        latest = (checkpoints / LATEST).read_text().strip()
    except OSError:
        return folders
    return sorted(folders, key=lambda path: path.name != latest)


def check_file(folder: Path, entry: FileEntry) -> None:
    """Compare a tensor file with its entry.

    Raises:
        CheckpointError: missing, of another size, or of other content.
    """
    path = folder / entry.name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != entry.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}")
    if FileEntry.of(path).sha256 != entry.sha256:
        raise CheckpointError(f"{path} was altered: its sha256 is not the one in the manifest")
