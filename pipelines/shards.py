"""One shard: written once, completely or not at all; and checked.

A shard is a webdataset tar.  Per document it holds KEY.json (length, source, digest of the text) and KEY.tokens (raw
little-endian ids).  The tar is renamed into place first and its index last: a shard counts only when its index exists.
All bytes are a function of the documents, the tokenizer and the settings, so a shard that is written twice, by two
tasks or in two builds, is the same shard.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from brt_dist.data.format import (
    IndexEntry,
    ShardIndex,
    ShardRecord,
    SkippedRecord,
    dump,
    index_name,
    load_index,
    shard_name,
    storage_type,
    token_type,
)
from brt_dist.data.tokenizers import Ids, Tokenizer
from brt_dist.errors import DataError
from brt_dist.files import atomic_file, write_atomic
from brt_dist.reading import read_bytes
from pipelines.selection import Split, selected
from pipelines.shard_contents import ShardContents
from pipelines.sources import DUPLICATE, BadDocument, Document, read_units

_TAR_BLOCK = 512

OnBad = Literal["error", "skip"]


@dataclass(frozen=True)
class ShardSettings:
    """What a shard depends on besides its documents and the tokenizer."""

    text_field: str = "text"
    on_bad: OnBad = "error"
    split: Split | None = None


class _HashedFile:
    """A file that is only written forward; knows its sha256 and size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def write_shard(folder: Path, contents: ShardContents, tokenizer: Tokenizer, settings: ShardSettings) -> ShardRecord:
    """Read, tokenize and write a shard with these contents.  Memory: one document at a time, and the index.

    DataError: a bad document, if the settings say so; a file that changed since it was listed; no room on the disk.
    """
    try:
        return _write_shard(folder, contents, tokenizer, settings)
    except OSError as error:
        raise DataError(f"{folder / shard_name(contents.number)}: cannot be written: {error}") from None


def _write_shard(folder: Path, contents: ShardContents, tokenizer: Tokenizer, settings: ShardSettings) -> ShardRecord:
    name, dtype = shard_name(contents.number), token_type(tokenizer.vocab_size)
    entries: list[IndexEntry] = []
    skipped: list[SkippedRecord] = []
    text_bytes = 0
    with atomic_file(folder / name) as file:
        hashed = _HashedFile(file)
        with _tar_writer(hashed) as writer:
            for item in _tokenized(contents, tokenizer, settings):
                if isinstance(item, BadDocument):
                    skipped.append(SkippedRecord(place=item.place, reason=item.reason))
                    continue
                document, ids = item
                text = document.text.encode()
                key, data = f"{contents.number:06d}-{len(entries):08d}", ids.astype(storage_type(dtype)).tobytes()
                meta = {
                    "length": ids.size,
                    "source": document.place,
                    "digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
                }
                writer.write({"__key__": key, "json": json.dumps(meta, ensure_ascii=False).encode(), "tokens": data})
                # Members are written in the order of their names, so the tokens were written last.
                offset = writer.tarstream.offset - -(-len(data) // _TAR_BLOCK) * _TAR_BLOCK
                sha256 = hashlib.sha256(data).hexdigest()
                entries.append(IndexEntry(key=key, offset=offset, tokens=ids.size, sha256=sha256))
                text_bytes += len(text)
    index = ShardIndex(
        shard=name,
        bytes=hashed.bytes,
        sha256=hashed.sha256.hexdigest(),
        dtype=dtype,
        source=contents.source,
        tokens=sum(entry.tokens for entry in entries),
        text_bytes=text_bytes,
        skipped=tuple(skipped),
        entries=tuple(entries),
    )
    data = dump(index)
    write_atomic(folder / index_name(name), data)
    return record_of(index, data)


def finished_shard(folder: Path, number: int) -> ShardRecord | None:
    """The shard if it counts: its index exists and its tar has the size in the index; else None."""
    path = folder / index_name(shard_name(number))
    try:
        data = path.read_bytes()
        index = load_index(path)
        return record_of(index, data) if (folder / index.shard).stat().st_size == index.bytes else None
    except (OSError, DataError):
        return None


def verify_shard(folder: Path, record: ShardRecord, dtype: str, vocab_size: int) -> list[str]:
    """Read every byte of a shard; returns what is wrong with it, naming files and documents, in plain sentences."""
    tar, path = folder / record.name, folder / index_name(record.name)
    try:
        data = read_bytes(path)
        index = load_index(path)
        content = np.asarray(np.memmap(tar, dtype=np.uint8, mode="r"))
    except (OSError, ValueError, DataError) as error:
        return [f"{record.name}: cannot be read: {error}"]
    problems = []
    if record_of(index, data) != record or index.dtype != dtype:
        problems.append(f"{path.name}: not the index that dataset.json lists")
    if content.size != record.bytes:
        problems.append(f"{record.name}: {content.size} bytes, dataset.json says {record.bytes}")
    elif hashlib.sha256(content.data).hexdigest() != record.sha256:
        problems.append(f"{record.name}: altered (sha256 differs)")
    for entry in index.entries:
        raw = content[entry.offset : entry.offset + entry.tokens * storage_type(index.dtype).itemsize]
        if raw.size != entry.tokens * storage_type(index.dtype).itemsize:
            problems.append(f"{record.name}: document {entry.key} is not in it (its index says at byte {entry.offset})")
        elif hashlib.sha256(raw.data).hexdigest() != entry.sha256:
            problems.append(f"{record.name}: document {entry.key} is damaged (sha256 differs)")
        elif int(raw.view(storage_type(index.dtype)).max()) >= vocab_size:
            problems.append(f"{record.name}: document {entry.key} has ids outside the vocabulary of {vocab_size}")
    return problems


def _tokenized(
    contents: ShardContents, tokenizer: Tokenizer, settings: ShardSettings
) -> Iterator[tuple[Document, Ids] | BadDocument]:
    """The documents of a shard with their ids, and unusable ones; or an error, depending on the policy."""
    found = read_units(contents.units, settings.text_field)
    for item, is_duplicate in selected(found, contents.duplicates, settings.split):
        if is_duplicate:
            yield BadDocument(item.place, DUPLICATE)
            continue
        if isinstance(item, Document):
            ids = tokenizer.encode(item.text)
            # A tokenizer that loses text may lose all of it.
            result = (item, ids) if ids.size else BadDocument(item.place, "no tokens")
        else:
            result = item
        if isinstance(result, BadDocument) and settings.on_bad == "error" and not result.is_by_rule:
            raise bad_document_error(result)
        yield result


def bad_document_error(item: BadDocument) -> DataError:
    """The error for an unusable document under the policy `error`."""
    return DataError(f"{item.place}: {item.reason}; --on-bad skip skips and counts such documents")


def _tar_writer(file: _HashedFile) -> Any:
    from webdataset import TarWriter

    return TarWriter(file, mtime=0, encoder=False, user="", group="")


def record_of(index: ShardIndex, data: bytes) -> ShardRecord:
    """The entry in dataset.json for the shard of an index whose file holds `data`."""
    reasons: dict[str, int] = {}
    for item in index.skipped:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    return ShardRecord(
        name=index.shard,
        bytes=index.bytes,
        sha256=index.sha256,
        index_sha256=hashlib.sha256(data).hexdigest(),
        source=index.source,
        documents=len(index.entries),
        tokens=index.tokens,
        text_bytes=index.text_bytes,
        skipped=reasons,
    )
