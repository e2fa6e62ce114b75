"""JSONL files, plain or compressed: one line, one document."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from brt_dist.reading import parse_json
from pipelines.sources.base import FileKind
from pipelines.sources.documents import BadDocument, Document, Unit, document_of
from pipelines.sources.packed import BrokenFile, Compression, damage, unpacked
from pipelines.sources.places import opened

_NAMES = ("jsonl", "ndjson", "json")
_COMPRESSION: dict[str, Compression] = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}


class Jsonl(FileKind):
    about = "a line of a JSONL file"
    suffixes = tuple(f".{name}{packed}" for name in _NAMES for packed in ("", ".gz", ".zst"))
    variants = {f".{name}.{packed}": packed for name in _NAMES for packed in ("gz", "zst")}  # noqa: RUF012
    only_alone = (".json", ".json.gz", ".json.zst")

    @classmethod
    def units(cls, file: Unit, size: int) -> Iterator[Unit]:
        """A plain file is cut into ranges; each has the lines that begin in it."""
        step = size if file.format == "jsonl" else max(file.end, 1)
        for start in range(0, max(file.end, 1), step):
            yield replace(file, start=start, end=min(start + step, file.end))

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        lines = 0  # of the unit so far
        with opened(unit.url) as raw:
            if unit.format == "jsonl":
                file, position = raw, unit.start
                if position:  # a line that began earlier belongs to the previous unit
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
                    item = _record(line, place, self.text_field)
                    if isinstance(item, BadDocument):
                        line_number = _lines_before(unit) + lines
                        item = BadDocument(f"{unit.name}, line {line_number}", item.reason)
                    yield item
                position += len(line)


class _Unusable(Exception):
    """A JSON value without text; says why."""


def _record(line: bytes, place: str, text_field: str) -> Document | BadDocument:
    try:
        return document_of(_text_of(parse_json(line), text_field).encode(), place)
    except _Unusable as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except UnicodeEncodeError:  # "\ud800" is valid JSON, but not a character
        reason = "not Unicode (lone surrogate)"
    except ValueError:
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
    with opened(unit.url) as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count + 1
