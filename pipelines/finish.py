"""The end of a build: documents.npy, hashes.npy and dataset.json, made from the indexes of the shards alone."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brt_dist.data.format import (
    DATASET_FILE,
    DOCUMENTS_FILE,
    HASHES_FILE,
    DatasetRecord,
    ShardRecord,
    SourceRecord,
    TokenizerRecord,
    TokenType,
    dataset_digest,
    dump,
    index_name,
    load_dataset,
    load_index,
)
from brt_dist.data.tokenizers import Tokenizer, digest
from brt_dist.errors import DataError
from brt_dist.files import atomic_file, write_atomic


def finish_dataset(
    folder: Path,
    sources: Sequence[str],
    tokenizer: Tokenizer,
    shards: Sequence[ShardRecord],
    dtype: TokenType,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
) -> DatasetRecord:
    """Write documents.npy, hashes.npy and dataset.json from the indexes.

    Args:
        folder: of the dataset.
        sources: their names.
        tokenizer: that made the tokens.
        shards: all of them, in order.
        dtype: of the tokens.
        left_out: files of a source that are in no shard, by reason.

    Raises:
        DataError: no document at all.
    """
    documents = sum(shard.documents for shard in shards)
    if documents == 0:
        raise DataError("none of the documents in the sources can be used")
    dataset = DatasetRecord(
        digest=dataset_digest(digest(tokenizer), shards),
        documents=documents,
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        dtype=dtype,
        tokenizer=TokenizerRecord(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size, sha256=digest(tokenizer)),
        documents_sha256=_write_documents(folder, shards, documents),
        hashes_sha256=_write_hashes(folder, shards, documents),
        sources=tuple(_count(source, shards, (left_out or {}).get(source, {})) for source in sources),
        shards=tuple(shards),
    )
    try:
        if load_dataset(folder) == dataset:
            return dataset
    except DataError:
        pass
    write_atomic(folder / DATASET_FILE, dump(dataset))
    return dataset


def _write_documents(folder: Path, shards: Sequence[ShardRecord], documents: int) -> str:
    """Write documents.npy (2, K): offsets, tokens; one index in memory at a time.  Returns its sha256."""
    path = folder / DOCUMENTS_FILE
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2, documents)})
        for field in ("offset", "tokens"):
            for shard in shards:
                entries = load_index(folder / index_name(shard.name)).entries
                file.write(np.array([getattr(entry, field) for entry in entries], dtype="<i8").tobytes())
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_hashes(folder: Path, shards: Sequence[ShardRecord], documents: int) -> str:
    """Write hashes.npy (K, 32): the sha256 of the tokens of each document.  Returns its own sha256."""
    path = folder / HASHES_FILE
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (documents, 32)})
        for shard in shards:
            for entry in load_index(folder / index_name(shard.name)).entries:
                file.write(bytes.fromhex(entry.sha256))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count(source: str, shards: Sequence[ShardRecord], left_out: Mapping[str, int]) -> SourceRecord:
    own = [shard for shard in shards if shard.source == source]
    skipped = Counter(left_out)
    for shard in own:
        skipped.update(shard.skipped)
    return SourceRecord(
        name=source,
        documents=sum(shard.documents for shard in own),
        tokens=sum(shard.tokens for shard in own),
        text_bytes=sum(shard.text_bytes for shard in own),
        skipped=dict(skipped),
    )
