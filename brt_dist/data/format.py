"""The format of a dataset folder: names, versions and the schema of every JSON file.

DIR/dataset.json             describes the dataset; written last, so a folder that has it is complete
DIR/tokenizer.json           the tokenizer
DIR/documents.npy            (2, K) int64: data offset in its shard, tokens; derived from the indexes, memory-mapped
DIR/hashes.npy               (K, 32) uint8: sha256 of each document's tokens; derived from the indexes (optional)
DIR/shard-000000.tar         webdataset: per document KEY.json and KEY.tokens (raw little-endian token ids)
DIR/shard-000000.bin         or a file of Megatron: raw ids alone, one document after another
DIR/shard-000000.index.json  where each document is in the tar; a shard counts only if this exists
DIR/build.json               state of the build (fingerprint); not needed for reading
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from brt_dist.errors import DataError
from brt_dist.reading import array_of, map_array, parse_json, read_bytes

DATASET_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.json"
DOCUMENTS_FILE = "documents.npy"
HASHES_FILE = "hashes.npy"
BUILD_FILE = "build.json"
FORMAT = 1

TokenType = Literal["uint16", "uint32"]
# numbers that fit 64 bits, as all code that uses them needs
NonNegativeInt = Annotated[int, Field(ge=0, lt=1 << 63)]
PositiveInt = Annotated[int, Field(ge=1, lt=1 << 63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# .bin: the raw ids of documents, as Megatron stores them; the name cannot lead to another folder
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{6,12}\.(tar|bin)$")]


R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base class of records: frozen, and unknown keys are errors (they belong to a later format)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardRecord(Record):
    """A shard as dataset.json lists it."""

    name: ShardName
    bytes: PositiveInt
    sha256: str
    index_sha256: str
    source: str
    documents: NonNegativeInt
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    skipped: dict[str, PositiveInt]


@dataclass(frozen=True)
class DocumentPlace:
    """Where the tokens of a document are.

    Attributes:
        number: of the document in the dataset.
        shard: that holds it.
        begin: first byte in the shard.
        bytes: of all its tokens.
    """

    number: int
    shard: ShardRecord
    begin: int
    bytes: int


class TokenizerRecord(Record):
    """The tokenizer that made the tokens."""

    kind: str
    vocab_size: PositiveInt
    sha256: str


class SourceRecord(Record):
    """The totals of one source of the corpus."""

    name: str
    documents: NonNegativeInt
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    skipped: dict[str, PositiveInt]


class DatasetRecord(Record):
    """dataset.json.  Its digest covers the tokenizer and every byte of every shard, in order."""

    format: Literal[1] = 1
    digest: str
    documents: PositiveInt
    tokens: PositiveInt
    text_bytes: PositiveInt
    dtype: TokenType
    tokenizer: TokenizerRecord
    documents_sha256: str
    hashes_sha256: str | None = None
    sources: Annotated[tuple[SourceRecord, ...], FailFast()]
    shards: Annotated[tuple[ShardRecord, ...], FailFast()]

    @model_validator(mode="after")
    def _is_consistent(self) -> "DatasetRecord":
        for name in ("documents", "tokens"):
            total, found = getattr(self, name), sum(getattr(shard, name) for shard in self.shards)
            if total != found:
                raise ValueError(f"it says {total} {name}, but its shards have {found}")
        return self


class IndexEntry(Record):
    """A document of a shard: its tokens are `tokens` ids at byte `offset` of the tar."""

    key: str
    offset: NonNegativeInt
    tokens: PositiveInt
    sha256: Sha256


class SkippedRecord(Record):
    """A document that was left out, and why."""

    place: str
    reason: str


class ShardIndex(Record):
    """NAME.index.json."""

    format: Literal[1] = 1
    shard: ShardName
    bytes: PositiveInt
    sha256: str
    dtype: TokenType
    source: str
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    skipped: Annotated[tuple[SkippedRecord, ...], FailFast()]
    entries: Annotated[tuple[IndexEntry, ...], FailFast()]


def shard_name(number: int, suffix: str = ".tar") -> str:
    """Name of the file of shard `number`."""
    return f"shard-{number:06d}{suffix}"


def index_name(shard: str) -> str:
    """Name of the index beside the file `shard`."""
    return shard.removesuffix(".tar").removesuffix(".bin") + ".index.json"


def token_type(vocab_size: int) -> TokenType:
    """The smaller of the two types that holds all ids of the vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def storage_type(dtype: TokenType) -> "np.dtype[Any]":
    """The type of tokens on disk: little-endian on every machine."""
    return np.dtype(dtype).newbyteorder("<")


def dump(record: Record) -> bytes:
    """The bytes of a record's file: a function of the record alone."""
    indent = 1 if isinstance(record, DatasetRecord) else None  # for people; indexes are for programs, and long
    return (json.dumps(record.model_dump(mode="json"), indent=indent, ensure_ascii=False) + "\n").encode()


def load_dataset(folder: Path) -> DatasetRecord:
    """Read dataset.json.

    Raises:
        DataError: it is missing, or not of this format.
    """
    path = folder / DATASET_FILE
    try:
        return parse_record(DatasetRecord, read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        what = "the build has not finished" if (folder / BUILD_FILE).exists() else "not a dataset folder"
        raise DataError(
            f"{folder}: no {DATASET_FILE} ({what}); `brt data build SOURCE --out {folder}` creates it"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a dataset of format {FORMAT}: {_first_line(error)}") from None


def parse_record(kind: type[R], content: bytes) -> R:
    """A record from the bytes of its file.  Raises ValueError at the first problem, not for each of a million keys."""
    value = parse_json(content)
    if not isinstance(value, dict) or (unknown := value.keys() - kind.model_fields.keys()):
        raise ValueError(f"unknown key {min(unknown)[:80]!r}" if isinstance(value, dict) else "not a JSON object")
    return kind.model_validate(value)


def load_index(path: Path) -> ShardIndex:
    """Read a shard's index.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return parse_record(ShardIndex, read_bytes(path))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a shard index of format {FORMAT}: {_first_line(error)}") from None


def _first_line(error: ValueError | OSError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return str(error)


def open_documents(path: Path, documents: int, content: bytes | None = None) -> npt.NDArray[np.int64]:
    """Open documents.npy, (2, K) int64.

    Args:
        path: of the file.
        documents: their number [K].
        content: of the file, if it is in memory; None: memory-map the file.

    Raises:
        DataError: it is missing, or not the table that dataset.json describes.
    """
    shape = (2, documents)
    try:
        return map_array(path, "<i8", shape) if content is None else array_of(content, "<i8", shape)
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the documents that dataset.json describes: {error}") from None


def open_hashes(path: Path, documents: int) -> npt.NDArray[np.uint8]:
    """Open hashes.npy, (K, 32) uint8, memory-mapped.

    Raises:
        DataError: it is missing, or not the table that dataset.json describes.
    """
    try:
        return map_array(path, "|u1", (documents, 32))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the hashes that dataset.json describes: {error}") from None


def check_lengths(lengths: npt.NDArray[np.int64], path: Path | str) -> None:
    """Refuse lengths that no document can have.

    Raises:
        DataError: one is not positive.
    """
    if lengths.size and int(lengths.min()) < 1:
        document = int(np.argmax(lengths < 1))
        raise DataError(
            f"{path}: document {document} has {int(lengths[document])} tokens; the file is damaged: rebuild the "
            "dataset, which keeps the existing shards"
        )


def dataset_digest(tokenizer_sha256: str, shards: Sequence[ShardRecord]) -> str:
    """Digest of a dataset: of its tokenizer and of every byte of its shards, in order."""
    content = json.dumps([FORMAT, tokenizer_sha256, [shard.sha256 for shard in shards]])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
