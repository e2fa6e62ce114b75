"""The readable half of a checkpoint: `manifest.json`, what is in the folder and what it belongs to."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from brt_dist.errors import CheckpointError

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One tensor file: name in the folder, size in bytes, sha256 of the content."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """One logical tensor: the file that holds it, its type (as safetensors names it) and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything of a checkpoint that is not a tensor.  Nothing in it depends on a layout but `saved_by`.

    Attributes:
        step: finished steps of the training loop.
        updates: optimizer updates; fewer than `step` where steps were skipped.
        tokens: unmasked tokens seen so far.
        cursor: place of all streams in the corpus, as the schedule writes it.
        evaluations: bits/token at this step by `DATASET/MEMORY`, if it was evaluated.
        config: the run's config, resolved.
        dataset: digest of the training dataset.
        versions: of the libraries that matter to the numbers.
        saved_by: the layout that wrote it; only told to people.
        files, tensors: what is in the folder.
    """

    step: int
    updates: int
    tokens: int
    cursor: dict[str, Any]
    evaluations: dict[str, float]
    config: dict[str, Any]
    dataset: str
    versions: dict[str, str]
    saved_by: dict[str, Any]
    files: tuple[FileEntry, ...]
    tensors: dict[str, TensorEntry] = field(repr=False)
    format: int = FORMAT

    @property
    def total_bytes(self) -> int:
        """Size of all tensor files."""
        return sum(entry.bytes for entry in self.files)

    def dump(self) -> str:
        """JSON with a digest of itself at the end."""
        values = asdict(self)
        return json.dumps({**values, "digest": _digest(values)}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> "Manifest":
        """Read what :meth:`dump` wrote.

        Raises:
            CheckpointError: damaged, or written by another version; begins with `where`.
        """
        try:
            values = json.loads(text)
            written = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{where}: {MANIFEST} is damaged ({type(error).__name__}: {error})") from error
        if written != FORMAT:
            newer = "written by a newer version of brt_dist" if _is_newer(written) else "of a format no longer read"
            raise CheckpointError(
                f"{where}: checkpoint format {written} is {newer}; this version reads format {FORMAT}"
            )
        digest = values.pop("digest", None)
        if digest != _digest({**values, "format": written}):
            raise CheckpointError(f"{where}: {MANIFEST} was altered: its digest is not that of its content")
        try:
            values["files"] = tuple(FileEntry(**entry) for entry in values["files"])
            values["tensors"] = {
                name: TensorEntry(entry["file"], entry["dtype"], tuple(entry["shape"]))
                for name, entry in values["tensors"].items()
            }
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where}: {MANIFEST} is not that of a checkpoint ({error})") from error


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; none for other names."""
    number = name.removeprefix("step_")
    return int(number) if number != name and number.isdigit() else None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_newer(written: Any) -> bool:
    return isinstance(written, int) and written > FORMAT
