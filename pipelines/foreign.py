"""Webdataset tars that others made, taken as a dataset where they are: indexed once, their tokens are not copied.

Each member KEY.EXTENSION holds the raw little-endian ids of one document.  The dataset folder gets links to the tars,
and an index, tokenizer.json, documents.npy and dataset.json as a build writes them.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brt_dist.data.format import (
    TOKENIZER_FILE,
    DatasetRecord,
    IndexEntry,
    ShardIndex,
    ShardRecord,
    TokenType,
    dump,
    index_name,
    shard_name,
    storage_type,
)
from brt_dist.data.tokenizers import Tokenizer, load_tokenizer
from brt_dist.errors import DataError
from brt_dist.files import write_atomic
from pipelines.finish import finish_dataset
from pipelines.shards import record_of


def index_tars(
    tars: Sequence[Path], folder: Path, tokenizer_path: Path, extension: str, dtype: TokenType
) -> DatasetRecord:
    """Make the dataset `folder` of raw token members of tars; one tar is one shard and one source.

    extension: of the members that hold ids, without the dot.  dtype: the type of the ids.
    DataError: a tar that cannot be read or has no such member; ids outside the vocabulary; a folder in use.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; give another --out")
    names = [tar.name for tar in tars]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two tars are named {name!r}; documents are placed by that name, rename one of them")
    tokenizer = load_tokenizer(tokenizer_path)
    indexes = [_index(tar.absolute(), number, tokenizer, extension, dtype) for number, tar in enumerate(tars)]
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardRecord] = []
    for tar, index in zip(tars, indexes, strict=True):
        (folder / index.shard).symlink_to(tar.absolute())
        data = dump(index)
        write_atomic(folder / index_name(index.shard), data)
        shards.append(record_of(index, data))
    write_atomic(folder / TOKENIZER_FILE, tokenizer.file)
    return finish_dataset(folder, names, tokenizer, shards, dtype)


def _index(tar: Path, number: int, tokenizer: Tokenizer, extension: str, dtype: TokenType) -> ShardIndex:
    kind = storage_type(dtype)
    entries: list[IndexEntry] = []
    text_bytes = 0
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                key, dot, ending = member.name.rpartition("/")[2].partition(".")
                if not member.isreg() or ending != extension:
                    continue
                content = file.extractfile(member)
                data = content.read() if content else b""
                where = f"{tar}, {member.name}"
                if not data or len(data) % kind.itemsize:
                    raise DataError(f"{where}: {len(data)} bytes are not a sequence of {dtype} ids")
                ids = np.frombuffer(data, dtype=kind)
                if int(ids.max()) >= tokenizer.vocab_size:
                    raise DataError(
                        f"{where}: id {int(ids.max())} is outside the tokenizer's vocabulary of {tokenizer.vocab_size}"
                        "; another --tokenizer or --dtype?"
                    )
                text_bytes += len(tokenizer.decode(ids).encode())
                name = member.name.removesuffix(f"{dot}{ending}")
                sha256 = hashlib.sha256(data).hexdigest()
                entries.append(IndexEntry(key=name or key, offset=member.offset_data, tokens=ids.size, sha256=sha256))
        with open(tar, "rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        size = tar.stat().st_size
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar}: not a readable uncompressed tar: {error}") from None
    if not entries:
        raise DataError(f"{tar}: no member ends in .{extension}; --extension chooses others")
    return ShardIndex(
        shard=shard_name(number),
        bytes=size,
        sha256=sha256,
        dtype=dtype,
        source=tar.name,
        tokens=sum(entry.tokens for entry in entries),
        text_bytes=text_bytes,
        skipped=(),
        entries=tuple(entries),
    )
