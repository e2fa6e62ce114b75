"""Files of many documents: JSONL, Parquet, and webdataset tars of text."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from pipelines.sources.documents import BadDocument, Document, Format, Unit, document_of, printable
from pipelines.sources.packed import BrokenFile, Compression, NoText, damage, parquet_column, unpacked
from pipelines.sources.places import opened

_COMPRESSION: dict[Format, Compression] = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}


def read_jsonl(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    lines = 0  # of the unit so far
    with opened(unit.url) as raw:
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


def read_parquet(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    rows = 0
    with opened(unit.url) as file:
        try:
            for value in parquet_column(file, text_field):
                rows += 1
                place = f"{unit.name}, row {rows}"
                if value is None:
                    yield BadDocument(place, f"field {text_field!r} is not text")
                else:
                    yield document_of(value, place)
        except NoText as error:  # each row would have been a document
            reason, total = error.args
            yield from (BadDocument(f"{unit.name}, row {row}", reason) for row in range(1, total + 1))
        except BrokenFile as error:
            yield BadDocument(f"{unit.name}, after row {rows}", str(error))


def read_tar(unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    from pipelines.sources.tars import samples, text_of

    last = f"{unit.name}, the beginning"
    with opened(unit.url) as file:
        try:
            for key, members in samples(file):
                last = place = f"{unit.name}, {printable(key)}"
                try:
                    text = text_of(members, text_field)
                except ValueError:
                    yield BadDocument(place, "not JSON")
                    continue
                yield BadDocument(place, "no text") if text is None else document_of(text, place)
        except BrokenFile as error:
            yield BadDocument(f"after {last}", str(error))


class _Unusable(Exception):
    """A JSON value that holds no text; says why."""


def _record(line: bytes, place: str, text_field: str) -> Document | BadDocument:
    try:
        return document_of(_text_of(json.loads(line), text_field).encode(), place)
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
    with opened(unit.url) as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count + 1
