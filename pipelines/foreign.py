"""Token files made by other programs, used in place as a dataset: they are indexed once, and tokens are not copied.

Two kinds: webdataset tars, in which each member KEY.EXTENSION holds the raw little-endian ids of one document, and
Megatron's indexed datasets (NAME.bin with NAME.idx).  The dataset folder gets links to the files, and an index,
tokenizer.json, documents.npy and dataset.json as a build writes them.
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.format import (
    TOKENIZER_FILE,
    DatasetRecord,
    IndexEntry,
    ShardIndex,
    ShardRecord,
    SkippedRecord,
    TokenType,
    dump,
    index_name,
    shard_name,
    storage_type,
)
from brt_dist.data.tokenizers import Tokenizer, load_tokenizer
from brt_dist.errors import DataError
from brt_dist.files import write_atomic
from pipelines import megatron
from pipelines.finish import finish_dataset
from pipelines.shards import record_of


@dataclass(frozen=True)
class TokenFiles:
    """How token files are read.

    Attributes:
        extension: of the members of a tar that hold ids, without the dot.
        dtype: of the ids of tars (unset: uint16).  Megatron's files declare it; a given value must agree.
        end_token: the id that ends documents, which is left out, as the stream schedule knows where they end.
    """

    extension: str = "tokens"
    dtype: TokenType | None = None
    end_token: int | None = None


@dataclass(frozen=True)
class _Found:
    """Ids of a document, and where they are: `offset` is their first byte in the file."""

    key: str
    offset: int
    ids: npt.NDArray[Any]


def index_files(
    files: Sequence[Path],
    folder: Path,
    tokenizer_path: Path,
    settings: TokenFiles | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> DatasetRecord:
    """Make the dataset `folder` from files of token ids; one file is one shard and one source.

    Args:
        files: uncompressed tars, and NAME.bin, NAME.idx or NAME of Megatron.
        folder: to create.
        tokenizer_path: of the tokenizer that made the ids.
        settings: how they are read.
        note: called with messages for the user.

    Raises:
        DataError: a file that cannot be read or holds no documents; ids outside the vocabulary; a folder in use.
    """
    settings = settings or TokenFiles()
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; give another --out")
    files = [(megatron.bin_of(file) if megatron.is_megatron(file) else file).absolute() for file in files]
    names = [file.name for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"two files are named {name!r}; documents are placed by that name, rename one of them")
    tokenizer = load_tokenizer(tokenizer_path)
    indexes = [_Indexing(file, number, tokenizer, settings, note).index() for number, file in enumerate(files)]
    types = {index.dtype for index in indexes}
    if len(types) > 1:
        kinds = ", ".join(f"{index.source}: {index.dtype}" for index in indexes)
        raise DataError(f"the files have ids of different types ({kinds}); make a dataset of each, and a mixture")
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardRecord] = []
    for file, index in zip(files, indexes, strict=True):
        (folder / index.shard).symlink_to(file)
        data = dump(index)
        write_atomic(folder / index_name(index.shard), data)
        shards.append(record_of(index, data))
    write_atomic(folder / TOKENIZER_FILE, tokenizer.file)
    return finish_dataset(folder, names, tokenizer, shards, types.pop())


class _Indexing:
    """Makes the index of one file."""

    def __init__(
        self, file: Path, number: int, tokenizer: Tokenizer, settings: TokenFiles, note: Callable[[str], None]
    ) -> None:
        self.file, self.number, self.tokenizer, self.settings, self.note = file, number, tokenizer, settings, note
        self.skipped: list[SkippedRecord] = []
        self.dtype: TokenType = settings.dtype or "uint16"

    def index(self) -> ShardIndex:
        is_bin = self.file.suffix == megatron.BIN
        entries: list[IndexEntry] = []
        text_bytes, ends, ended = 0, Counter[int](), 0
        for found in self._megatron() if is_bin else self._tar():
            last, ids = int(found.ids[-1]), found.ids
            ends[last] += 1
            if last == self.settings.end_token:
                ended, ids = ended + 1, ids[:-1]
            if not ids.size:
                self._skip(found.key, "empty")
                continue
            if int(ids.max()) >= self.tokenizer.vocab_size:
                raise DataError(
                    f"{self.file}, {found.key}: id {int(ids.max())} is outside the tokenizer's vocabulary of "
                    f"{self.tokenizer.vocab_size}; another --tokenizer{'' if is_bin else ' or --dtype'}?"
                )
            text_bytes += len(self.tokenizer.decode(ids).encode())
            sha256 = hashlib.sha256(ids.tobytes()).hexdigest()
            entries.append(IndexEntry(key=found.key, offset=found.offset, tokens=ids.size, sha256=sha256))
        if not entries:
            what = "no document has tokens" if is_bin else f"no member ends in .{self.settings.extension}"
            raise DataError(f"{self.file}: {what}{'' if is_bin else '; --extension chooses others'}")
        self._tell_of_ends(ends, ended)
        with open(self.file, "rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        return ShardIndex(
            shard=shard_name(self.number, megatron.BIN if is_bin else ".tar"),
            bytes=self.file.stat().st_size,
            sha256=sha256,
            dtype=self.dtype,
            source=self.file.name,
            tokens=sum(entry.tokens for entry in entries),
            text_bytes=text_bytes,
            skipped=tuple(self.skipped),
            entries=tuple(entries),
        )

    def _tar(self) -> Iterator[_Found]:
        kind = storage_type(self.dtype)
        try:
            with tarfile.open(self.file, "r:") as tar:
                for member in tar:
                    key, dot, ending = member.name.rpartition("/")[2].partition(".")
                    if not member.isreg() or ending != self.settings.extension:
                        continue
                    content = tar.extractfile(member)
                    data = content.read() if content else b""
                    if not data or len(data) % kind.itemsize:
                        where = f"{self.file}, {member.name}"
                        raise DataError(f"{where}: {len(data)} bytes are not a sequence of {self.dtype} ids")
                    name = member.name.removesuffix(f"{dot}{ending}")
                    yield _Found(name or key, member.offset_data, np.frombuffer(data, dtype=kind))
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{self.file}: not a readable uncompressed tar: {error}") from None

    def _megatron(self) -> Iterator[_Found]:
        documents = megatron.read_index(self.file)
        if self.settings.dtype not in (None, documents.dtype):
            raise DataError(f"{self.file}: its ids are {documents.dtype}, not {self.settings.dtype}; leave --dtype out")
        self.dtype = documents.dtype
        kind = storage_type(self.dtype)
        content = np.memmap(self.file, dtype=kind, mode="r") if self.file.stat().st_size else np.empty(0, kind)
        for number, (offset, count) in enumerate(zip(documents.offsets, documents.tokens, strict=True)):
            key, first = f"{self.number:06d}-{number:08d}", int(offset) // kind.itemsize
            if count:
                yield _Found(key, int(offset), content[first : first + int(count)])
            else:
                self._skip(key, "empty")

    def _skip(self, key: str, reason: str) -> None:
        self.skipped.append(SkippedRecord(place=f"{self.file.name}, {key}", reason=reason))

    def _tell_of_ends(self, ends: Counter[int], ended: int) -> None:
        token, (usual, count) = self.settings.end_token, ends.most_common(1)[0]
        if token is not None and not ended:
            raise DataError(f"{self.file}: no document ends with id {token}; most often they end with {usual}")
        if token is not None and ended < ends.total():
            self.note(f"{self.file.name}: {ends.total() - ended:,} documents do not end with id {token}")
        if token is None and count == ends.total() > 1:
            self.note(
                f"{self.file.name}: every document ends with id {usual}; if it only marks the end, --end-token {usual} "
                "leaves it out"
            )
