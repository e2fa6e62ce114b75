"""Sources of text: text files, JSONL, Parquet and tars.  One document in, one document out, in a stated order.

Order: files of a folder by their path, compared component by component as UTF-8 bytes; lines of a JSONL file and rows
of a Parquet file as they stand.  Names that begin with a dot, and links to folders, are left out.  Paths may be local
or any fsspec URL.

A source is listed as units of work: a text file, a whole compressed JSONL, Parquet or tar file, or a range of bytes
of a plain JSONL file (the lines that begin in it, so that a large file can be cut without reading it).  Reading a unit
streams.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from brt_dist.errors import DataError
from pipelines.packed import BrokenFile, Compression, NoText, damage, parquet_column, unpacked

TEXT_SUFFIXES = (".txt",)
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
DEFAULT_SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, ".parquet")

Format = Literal["text", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "tar", "git", "latex"]
Kind = Literal["files", "git", "latex"]
_COMPRESSION: dict[Format, Compression] = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}


@dataclass(frozen=True)
class Document:
    """One document.  place: where it came from, without folders of this machine."""

    text: str
    place: str


@dataclass(frozen=True)
class BadDocument:
    """What should have been a document.  place: file, and line or byte in it.  reason: one of a few fixed phrases."""

    place: str
    reason: str


@dataclass(frozen=True)
class Unit:
    """Bytes [start, end) of a file.  name: its place.  stamp: changes when the file does."""

    url: str
    name: str
    format: Format
    start: int
    end: int
    stamp: str


@dataclass(frozen=True)
class Source:
    """A folder or a file.  name: its last path component, under which its documents are placed."""

    given: str
    name: str
    suffixes: tuple[str, ...]
    kind: Kind = "files"

    def units(self, size: int) -> Iterator[Unit]:
        """All units in order; plain JSONL files are cut into ranges of at most `size` bytes.

        DataError: nothing there, or no file with one of the suffixes.
        """
        found = False
        if self.kind == "git":
            from pipelines.checkouts import checkout_units

            for unit in checkout_units(self.given, self.name):
                found = True
                yield unit
            if not found:
                raise DataError(f"{self.given}: no git checkout there or below (a folder that holds .git)")
            return
        filesystem, path = _filesystem(self.given)
        for info, parts in _walk(filesystem, path, (self.name,)):
            form: Format | None = _format(parts[-1], self.suffixes if len(parts) > 1 else ())
            if self.kind == "latex":
                form = "latex" if parts[-1].endswith(".tex") else None
            if form is None:
                continue
            found = True
            url = filesystem.unstrip_protocol(info["name"]) if _is_remote(self.given) else info["name"]
            name, length, stamp = printable("/".join(parts)), int(info["size"] or 0), _stamp(info)
            step = size if form == "jsonl" else max(length, 1)
            for start in range(0, max(length, 1), step):
                yield Unit(url, name, form, start, min(start + step, length), stamp)
        if not found and self.kind == "latex":
            raise DataError(f"{self.given}: no .tex files")
        if not found:
            raise DataError(
                f"{self.given}: no files that end in {' or '.join(self.suffixes)}; --suffix chooses other ones"
            )


def open_sources(specs: Sequence[str], suffixes: Sequence[str] = ()) -> list[Source]:
    """Sources as they were given.  DataError: none, missing, or two of the same name."""
    if not specs:
        raise DataError("no source: give at least one folder of text files, JSONL or Parquet file")
    sources = []
    for told in specs:
        kind, spec = _kind(told)
        filesystem, path = _filesystem(spec)
        if not filesystem.exists(path):
            raise DataError(f"{spec}: no such file or folder")
        if kind != "files" and not filesystem.isdir(path):
            raise DataError(f"{told}: {kind} sources are folders")
        given = spec if _is_remote(spec) else os.path.abspath(spec)
        name = printable(path.rstrip("/").rsplit("/", 1)[-1]) or "root"
        sources.append(Source(given, name, tuple(suffixes) or DEFAULT_SUFFIXES, kind))
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sources are named {name!r}; documents are placed by that name, rename one of them")
    return sources


def read_unit(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    """The documents of a unit, in order.  text_field: the field of a record that holds the text.

    Lines of white space alone hold no record and are passed over.
    DataError: the file is not the one that was listed.
    """
    try:
        if unit.format == "text":
            yield _read_text(unit)
        elif unit.format == "git":
            from pipelines.checkouts import read_checkout

            yield from read_checkout(unit)
        elif unit.format == "latex":
            yield from _read_latex(unit)
        elif unit.format == "parquet":
            yield from _read_parquet(unit, text_field)
        elif unit.format == "tar":
            yield from _read_tar(unit, text_field)
        else:
            yield from _read_jsonl(unit, text_field)
    except OSError as error:
        raise DataError(f"{unit.url}: cannot be read: {error}") from None


def _read_text(unit: Unit) -> Document | BadDocument:
    with _open(unit.url) as file:
        data = file.read()
    if len(data) != unit.end:
        raise DataError(f"{unit.url}: {len(data)} bytes, it had {unit.end} when the build began; start the build again")
    return _document(data, unit.name)


def _document(data: bytes, place: str) -> Document | BadDocument:
    if not data:
        return BadDocument(place, "empty")
    try:
        return Document(data.decode(), place)
    except UnicodeDecodeError as error:
        return BadDocument(f"{place}, byte {error.start}", "not UTF-8")


def _read_latex(unit: Unit) -> Iterator[Document | BadDocument]:
    from pipelines.latex import BadInput, is_main, resolve

    main = _read_text(unit)
    if isinstance(main, BadDocument):
        if main.reason != "empty":  # an empty file is a part with nothing in it
            yield main
        return
    if not is_main(main.text):
        return
    inner = unit.name.split("/", 1)[1]
    root = unit.url.removesuffix(inner)

    def read(path: str) -> str | None:
        try:
            with _open(root + path) as file:
                return file.read().decode()
        except FileNotFoundError:
            return None

    try:
        text = resolve(inner, read)
    except BadInput as error:
        path, line, reason = error.args
        yield BadDocument(f"{_root_name(unit)}/{path}, line {line}", reason)
    except UnicodeDecodeError:  # the file itself is named where it is read as a unit
        yield BadDocument(unit.name, "an input is not UTF-8")
    else:
        yield _document(text.encode(), unit.name)


def _root_name(unit: Unit) -> str:
    """The name of the source of a unit."""
    return unit.name.split("/", 1)[0]


def _kind(told: str) -> tuple[Kind, str]:
    """What a source was said to be, `git:` or `latex:`, and its path or URL.  DataError: git at a URL."""
    if told.startswith("git:") and not told.startswith("git://"):
        if _is_remote(told):
            raise DataError(f"{told}: git sources are checkouts on this machine; clone it first")
        return "git", told.removeprefix("git:")
    if told.startswith("latex:"):
        return "latex", told.removeprefix("latex:")
    return "files", told


def _read_jsonl(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    lines = 0  # of the unit so far
    with _open(unit.url) as raw:
        if unit.format == "jsonl":
            file, position = raw, unit.start
            if position:  # a line that began before belongs to the unit before
                raw.seek(position - 1)
                position += len(raw.readline()) - 1
            end: float = unit.end
        else:
            file, position, end = unpacked(raw, _COMPRESSION[unit.format]), 0, float("inf")
        while position < end:
            place = f"{unit.name}@{position}"
            try:
                with damage(_COMPRESSION[unit.format]) if unit.format in _COMPRESSION else nullcontext():
                    line = file.readline()
            except BrokenFile as error:
                yield BadDocument(f"{unit.name}, after line {lines}", str(error))
                return
            if not line:
                break
            lines += 1
            if line.strip():
                item = _record(line, place, text_field)
                if isinstance(item, BadDocument):
                    line_number = _lines_before(unit) + lines
                    item = BadDocument(f"{unit.name}, line {line_number}", item.reason)
                yield item
            position += len(line)


def _read_parquet(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    rows = 0
    with _open(unit.url) as file:
        try:
            for value in parquet_column(file, text_field):
                rows += 1
                place = f"{unit.name}, row {rows}"
                if value is None:
                    yield BadDocument(place, f"field {text_field!r} is not text")
                else:
                    yield _document(value, place)
        except NoText as error:  # each row would have been a document
            reason, total = error.args
            yield from (BadDocument(f"{unit.name}, row {row}", reason) for row in range(1, total + 1))
        except BrokenFile as error:
            yield BadDocument(f"{unit.name}, after row {rows}", str(error))


def _read_tar(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    from pipelines.tars import samples, text_of

    last = f"{unit.name}, the beginning"
    with _open(unit.url) as file:
        try:
            for key, members in samples(file):
                last = place = f"{unit.name}, {printable(key)}"
                try:
                    text = text_of(members, text_field)
                except ValueError:
                    yield BadDocument(place, "not JSON")
                    continue
                yield BadDocument(place, "no text") if text is None else _document(text, place)
        except BrokenFile as error:
            yield BadDocument(f"after {last}", str(error))


class _Unusable(Exception):
    """A JSON value that holds no text; says why."""


def _record(line: bytes, place: str, text_field: str) -> Document | BadDocument:
    try:
        return _document(_text_of(json.loads(line), text_field).encode(), place)
    except _Unusable as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except UnicodeEncodeError:  # "\ud800" is valid JSON, but no character
        reason = "not Unicode (lone surrogate)"
    except (ValueError, RecursionError):
        reason = "not JSON"
    return BadDocument(place, reason)


def _text_of(record: Any, text_field: str) -> str:
    if not isinstance(record, dict):
        raise _Unusable("not a JSON object")
    if text_field not in record:
        raise _Unusable(f"no field {text_field!r}")
    text = record[text_field]
    if not isinstance(text, str):
        raise _Unusable(f"field {text_field!r} is not text")
    return text


def _lines_before(unit: Unit) -> int:
    """Lines of the file that begin before the unit's first one; read only to name a bad line."""
    if unit.start == 0:
        return 0
    count, left = 0, unit.start - 1
    with _open(unit.url) as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count + 1


def _walk(filesystem: Any, path: str, parts: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Files under a path with the components of their place, in order.  Memory: one folder at a time."""
    info = filesystem.info(path)
    if info["type"] != "directory":
        yield info, parts
        return
    entries = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in filesystem.ls(path, detail=True)}
    for name in sorted(entries, key=os.fsencode):
        entry = entries[name]
        if name.startswith(".") or entry["name"].rstrip("/") == path.rstrip("/"):
            continue
        if entry["type"] != "directory":
            yield entry, (*parts, name)
        elif not entry.get("islink"):
            yield from _walk(filesystem, entry["name"], (*parts, name))


def _format(name: str, suffixes: tuple[str, ...]) -> Format | None:
    """How a file is read, by its name; none: it is not of this source.  A file given by itself is always read."""
    if suffixes and not name.endswith(suffixes):
        return None
    for form in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "tar"):
        if name.endswith(f".{form}"):
            return form
    return "text"


def _stamp(info: dict[str, Any]) -> str:
    """What the file system knows that changes with the content: size and time, or a tag."""
    known = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "generation")
    return json.dumps([str(info.get(key)) for key in known if info.get(key) is not None])


def _filesystem(spec: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it."""
    if not _is_remote(spec):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(spec)
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(spec)
    except (ImportError, ValueError) as error:
        raise DataError(f"{spec}: {error}") from None
    return filesystem, path


def _is_remote(spec: str) -> bool:
    return "://" in spec


@contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    if not _is_remote(url):
        with open(url, "rb") as file:
            yield file
        return
    import fsspec

    with fsspec.open(url, "rb") as remote:
        yield cast(io.BufferedReader, remote)


def printable(name: str) -> str:
    """A name that any JSON reader takes: bytes that are not UTF-8 are spelled out."""
    return os.fsencode(name).decode(errors="backslashreplace")
