"""`manifest.json` of a checkpoint: its files and tensors, and everything that is not a tensor."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from brt_dist.checkpoint.tensor_header import ELEMENT_BYTES
from brt_dist.errors import CheckpointError
from brt_dist.reading import LATEST, parse_json

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Shape = Annotated[tuple[Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)], ...], Field(max_length=16)]

FORMAT = 2
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 << 20  # bytes; a model with 1000 layers takes 20 MB
_FOLDER_NAME = re.compile(r"step_([0-9]{8,18})", re.ASCII)
_FILE_NAME = re.compile(r"[a-z]+/\w[\w.-]*\.safetensors", re.ASCII)


@dataclass(frozen=True)
class FileEntry:
    """A tensor file.

    Attributes:
        name: of the file, in the checkpoint's folder.
        bytes: its size.
        sha256: of its content.
    """

    name: str
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """A logical tensor.

    Attributes:
        file: name of the file that holds it.
        dtype: its type, as safetensors names it.
        shape: its shape, without padding.
    """

    file: str
    dtype: str
    shape: Shape

    @property
    def bytes(self) -> int:
        """Size of its values.

        Raises:
            KeyError: `dtype` is not one that checkpoints use.
        """
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    """Everything in a checkpoint that is not a tensor.  Only `saved_by` depends on the layout.

    Attributes:
        step: number of finished steps.
        updates: optimizer updates; fewer than `step` if steps were skipped.
        tokens: tokens with a target trained on so far.
        cursor: position of all streams in the corpus, as :meth:`Cursor.to_json` writes it.
        evaluations: bits/token after this step by `DATASET/MEMORY`; empty if it was not evaluated.
        config: the run's config, resolved.
        dataset: digest of the training dataset.
        versions: of the libraries that affect the numbers.
        saved_by: the layout that wrote it; for display only.
        files: the tensor files.
        tensors: the logical tensors by name.
        time: when it was saved, in unix seconds; for display only.  0: unknown.
        tokenizer: sha256 of the tokenizer of model and data; empty: unknown.
        mask_version: how the run draws attention dropout masks (`model/dropout.py`); checkpoints of 0.1.0 lack it,
            which means 1.
        left_out: whether an evaluation or samples were due after this step but skipped, because the run was asked to
            stop; the run catches up when it resumes, and then rewrites the manifest.
        format: version of the checkpoint format.
    """

    step: Count
    updates: Count
    tokens: Count
    cursor: dict[str, Any]
    evaluations: dict[str, float]
    config: dict[str, Any]
    dataset: str
    versions: dict[str, str]
    saved_by: dict[str, Any]
    files: tuple[FileEntry, ...]
    tensors: dict[str, TensorEntry] = field(repr=False)
    time: Annotated[float, Field(ge=0, le=LATEST)] = 0.0
    tokenizer: str = ""
    mask_version: Literal[1, 2] = 1
    left_out: bool = False
    format: int = FORMAT

    @property
    def has_memory(self) -> bool:
        """Whether it holds the memory of the streams."""
        return any(_is_memory(name) for name in self.tensors)

    def without_memory(self) -> "Manifest":
        """The same manifest without the memory of the streams."""
        files = tuple(entry for entry in self.files if not _is_memory(entry.name))
        tensors = {name: entry for name, entry in self.tensors.items() if not _is_memory(name)}
        return replace(self, files=files, tensors=tensors)

    @property
    def total_bytes(self) -> int:
        """Size of all tensor files."""
        return sum(entry.bytes for entry in self.files)

    def dump(self) -> str:
        """JSON text that ends with a digest of its content."""
        values = asdict(self)
        return json.dumps({**values, "digest": _digest(values)}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> "Manifest":
        """Parse what :meth:`dump` wrote.  Safe on untrusted text: no allocation depends on it, and no file is opened.

        Args:
            text: the JSON.
            where: its place, for messages.

        Raises:
            CheckpointError: it is damaged, inconsistent, or written by another version.
        """
        try:
            values = parse_json(text)
            written = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{where}: {MANIFEST} is damaged ({type(error).__name__}: {error})") from error
        if written != FORMAT:
            newer = "from a newer version of brt_dist" if _is_newer(written) else "no longer supported"
            raise CheckpointError(
                f"{where}: checkpoint format {written} is {newer}; this version reads format {FORMAT}"
            )
        digest = values.pop("digest", None)
        if digest != _digest({**values, "format": written}):
            raise CheckpointError(f"{where}: {MANIFEST} was altered: its digest does not match its content")
        try:
            manifest = _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"{where}: not a checkpoint's {MANIFEST} ({key}: {first['msg']})") from None
        problem = contradiction(manifest.files, manifest.tensors, _FILE_NAME)
        if problem:
            raise CheckpointError(f"{where}: {MANIFEST} contradicts itself: {problem}")
        return manifest


def contradiction(files: Iterable[FileEntry], tensors: Mapping[str, TensorEntry], name: re.Pattern[str]) -> str | None:
    """Find a contradiction: a name that leads out of the folder, or tensors that do not fit in their file.

    Args:
        files: the tensor files.
        tensors: the logical tensors by name.
        name: pattern of valid file names.

    Returns:
        The contradiction, in words; None if there is none.
    """
    sizes = {entry.name: entry.bytes for entry in files}
    for file in sizes:
        if not name.fullmatch(file):
            return f"{file!r} is not a valid name of a tensor file"
    used: dict[str, int] = defaultdict(int)
    for tensor, entry in tensors.items():
        if entry.file not in sizes:
            return f"tensor {tensor} is in {entry.file!r}, which is not one of its files"
        if entry.dtype not in ELEMENT_BYTES or any(size < 0 for size in entry.shape):
            return f"tensor {tensor} cannot be {entry.dtype} {list(entry.shape)}"
        used[entry.file] += entry.bytes
        if used[entry.file] > sizes[entry.file]:
            return f"the tensors in {entry.file} up to {tensor} exceed its {sizes[entry.file]} bytes"
    return None


_ADAPTER = TypeAdapter(Manifest)


def _is_memory(name: str) -> bool:
    return name.startswith("memory/")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for other names, such as `step_3` where `step_00000003` is meant."""
    found = _FOLDER_NAME.fullmatch(name)
    return int(found[1]) if found and folder_name(int(found[1])) == name else None


def sorted_names(names: Iterable[str]) -> list[str]:
    """The names of checkpoints among `names`, by step, without copies (`step_3`)."""
    steps = {name: step_of(name) for name in names}
    return sorted((name for name in steps if steps[name] is not None), key=lambda name: steps[name] or 0)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_newer(written: Any) -> bool:
    return isinstance(written, int) and written > FORMAT
