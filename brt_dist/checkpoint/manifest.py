"""The readable half of a checkpoint: `manifest.json`, what is in the folder and what it belongs to."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from brt_dist.errors import CheckpointError

FORMAT = 2
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 << 20  # bytes; that of a model with 1000 layers has 20 MB
ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
_FILE_NAME = re.compile(r"[a-z]+/\w[\w.-]*\.safetensors", re.ASCII)


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

    @property
    def bytes(self) -> int:
        """Size of its values.  KeyError: of a type that is not saved here."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


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
        tokenizer: sha256 of the tokenizer that the ids of model and data belong to; empty: not known.
        versions: of the libraries that matter to the numbers.
        saved_by: the layout that wrote it; only told to people.
        time: when, in unix seconds; only told to people.  0: not known.
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
    time: float = 0.0
    tokenizer: str = ""
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
        """Read what :meth:`dump` wrote.  Whatever the text says, nothing is allocated and no file is touched for it.

        Raises:
            CheckpointError: damaged, inconsistent, or written by another version; begins with `where`.
        """
        try:
            values = json.loads(text)
            written = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
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
            manifest = _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"{where}: {MANIFEST} is not that of a checkpoint ({key}: {first['msg']})") from None
        problem = contradiction(manifest.files, manifest.tensors, _FILE_NAME)
        if problem:
            raise CheckpointError(f"{where}: {MANIFEST} contradicts itself: {problem}")
        return manifest


def contradiction(files: Iterable[FileEntry], tensors: Mapping[str, TensorEntry], name: re.Pattern[str]) -> str | None:
    """What cannot be: names that lead out of the folder, tensors that do not fit into their files.

    Args:
        name: what a file may be called.
    """
    sizes = {entry.name: entry.bytes for entry in files}
    for file in sizes:
        if not name.fullmatch(file):
            return f"{file!r} is no name of a tensor file"
    used: dict[str, int] = defaultdict(int)
    for tensor, entry in tensors.items():
        if entry.file not in sizes:
            return f"tensor {tensor} is in {entry.file!r}, which is not among its files"
        if entry.dtype not in ELEMENT_BYTES or any(size < 0 for size in entry.shape):
            return f"tensor {tensor} cannot be {entry.dtype} {list(entry.shape)}"
        used[entry.file] += entry.bytes
        if used[entry.file] > sizes[entry.file]:
            return f"the tensors of {entry.file} up to {tensor} have more than its {sizes[entry.file]} bytes"
    return None


_ADAPTER = TypeAdapter(Manifest)


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
