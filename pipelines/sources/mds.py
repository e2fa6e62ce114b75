"""Datasets of MosaicML's streaming (MDS): shards of samples with named columns.

A shard is the number of samples n (uint32), n + 1 offsets of their bytes (uint32), a JSON with the columns, and the
samples.  A sample is the sizes (uint32) of its columns of variable size, then the values of all columns.  The format is
described in the documentation of mosaicml-streaming.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import IO, Any

from brt_dist.errors import DataError
from brt_dist.reading import parse_json
from pipelines.sources.base import TreeKind
from pipelines.sources.documents import BadDocument, Document, Unit, document_of
from pipelines.sources.packed import BrokenFile, NoText, damage, unpacked
from pipelines.sources.places import filesystem_of, is_remote, opened, stamp

_MOST_BYTES = 256 << 20  # of index.json, and of the offsets and columns of a shard
_PACKED = {"zstd": "zstd", "gz": "gzip"}  # MDS's names


class Mds(TreeKind):
    about = "a sample of an MDS dataset (MosaicML's streaming)"
    wanted = "no MDS dataset (a folder with index.json and .mds files)"

    @classmethod
    def units(cls, folder: str, name: str) -> Iterator[Unit]:
        """A unit per shard, in the order of the index."""
        filesystem, path = filesystem_of(folder)
        if not filesystem.exists(f"{path}/index.json"):
            return
        for number, shard in enumerate(_shards(filesystem, folder, path)):
            compression = str(shard.get("compression") or "").partition(":")[0]
            if shard.get("format") != "mds" or (compression and compression not in _PACKED):
                what = compression or shard.get("format")
                raise DataError(
                    f"{folder}: shard {number} is {what}; MDS is read uncompressed, or compressed with gz or zstd"
                )
            base = (shard.get("zip_data" if compression else "raw_data") or {}).get("basename")
            if not isinstance(base, str) or "/" in base:
                raise DataError(f"{folder}/index.json: shard {number} names no file")
            try:
                info = filesystem.info(f"{path}/{base}")
            except FileNotFoundError:
                raise DataError(f"{folder}: {base} is missing, which index.json names") from None
            url = filesystem.unstrip_protocol(info["name"]) if is_remote(folder) else info["name"]
            form = f"mds.{compression}" if compression else "mds"
            yield Unit(url, f"{name}/{base}", form, 0, int(info["size"] or 0), stamp(info))

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        samples = 0
        _, _, compression = unit.format.partition(".")
        with opened(unit.url) as raw:
            try:
                with damage("MDS"):
                    file = unpacked(raw, "gzip" if compression == "gz" else "zstd") if compression else raw
                for value in _values(file, self.text_field):
                    samples += 1
                    yield document_of(value, f"{unit.name}, sample {samples}")
            except NoText as error:
                yield BadDocument(unit.name, error.args[0])
            except BrokenFile as error:
                yield BadDocument(f"{unit.name}, after sample {samples}", str(error))


def _shards(filesystem: Any, folder: str, path: str) -> list[dict[str, Any]]:
    with filesystem.open(f"{path}/index.json", "rb") as file:
        text = file.read(_MOST_BYTES)
    try:
        shards = parse_json(text)["shards"]
    except (ValueError, KeyError, TypeError):
        shards = None
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise DataError(f"{folder}/index.json is not the index of an MDS dataset")
    return [shard for shard in shards if shard.get("samples") != 0]  # the writer leaves empty ones


def _values(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The bytes of a column of text, sample by sample.  Memory: the offsets and one sample."""
    (count,) = struct.unpack("<I", _exactly(file, 4))
    table = 4 * (count + 2)
    if table > _MOST_BYTES:
        raise BrokenFile("broken MDS")
    offsets = struct.unpack(f"<{count + 1}I", _exactly(file, 4 * (count + 1)))
    if not table <= offsets[0] <= _MOST_BYTES or any(end < begin for begin, end in itertools.pairwise(offsets)):
        raise BrokenFile("broken MDS")
    sizes, column = _columns(_exactly(file, offsets[0] - table), name)
    for begin, end in itertools.pairwise(offsets):
        yield _column(_exactly(file, end - begin), sizes, column)


def _columns(header: bytes, name: str) -> tuple[list[int | None], int]:
    """Sizes of the columns (None: variable), and the number of the wanted one."""
    try:
        found = parse_json(header)
        names, kinds, sizes = (found[f"column_{what}"] for what in ("names", "encodings", "sizes"))
        columns = list(zip(names, kinds, sizes, strict=True))
    except (ValueError, KeyError, TypeError):
        raise BrokenFile("broken MDS") from None
    if not all(size is None or (isinstance(size, int) and size >= 0) for size in sizes):
        raise BrokenFile("broken MDS")
    if name not in names:
        raise NoText(f"no field {name!r}", 0)
    at = names.index(name)
    if columns[at][1] != "str":
        raise NoText(f"field {name!r} is not text", 0)
    return list(sizes), at


def _column(sample: bytes, sizes: list[int | None], wanted: int) -> bytes:
    free = sum(size is None for size in sizes)
    if len(sample) < 4 * free:
        raise BrokenFile("broken MDS")
    told = iter(struct.unpack_from(f"<{free}I", sample))
    real = [next(told) if size is None else size for size in sizes]
    if 4 * free + sum(real) != len(sample):
        raise BrokenFile("broken MDS")
    begin = 4 * free + sum(real[:wanted])
    return sample[begin : begin + real[wanted]]


def _exactly(file: IO[bytes], count: int) -> bytes:
    with damage("MDS"):
        data = file.read(count)
    if len(data) < count:
        raise BrokenFile("broken MDS")
    return data
