"""Webdataset tars of text, made by other programs: members that share a key are one sample.

The key is the path up to the first dot of the file name, as in webdataset.  The text is the member `.txt`, else the
text field of the member `.json`.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any

from brt_dist.reading import parse_json
from pipelines.sources.base import FileKind
from pipelines.sources.documents import BadDocument, Document, Unit, document_of, printable
from pipelines.sources.packed import BrokenFile
from pipelines.sources.places import opened

Sample = tuple[str, dict[str, bytes]]


class Tar(FileKind):
    about = "a sample of a webdataset tar of text"
    suffixes = (".tar",)
    in_folders = False

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        last = f"{unit.name}, the beginning"
        with opened(unit.url) as file:
            try:
                for key, members in samples(file):
                    last = place = f"{unit.name}, {printable(key)}"
                    try:
                        text = text_of(members, self.text_field)
                    except ValueError:
                        yield BadDocument(place, "not JSON")
                        continue
                    yield BadDocument(place, "no text") if text is None else document_of(text, place)
            except BrokenFile as error:
                yield BadDocument(f"after {last}", str(error))


def samples(file: IO[bytes]) -> Iterator[Sample]:
    """Key and members by extension, in order; only `.txt` and `.json` are kept.  Memory: one sample.

    BrokenFile: the tar ends too early or is not a tar.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                this = f"{folder}/{stem}" if folder else stem
                if this != key:
                    if key is not None:
                        yield key, members
                    key, members = this, {}
                if extension in members:
                    yield key, members  # the same name twice: another sample, so that nothing is lost
                    members = {}
                if extension in ("txt", "json"):
                    content = tar.extractfile(member)
                    members[extension] = content.read() if content else b""
    except (tarfile.TarError, EOFError) as error:
        raise BrokenFile(f"damaged tar ({type(error).__name__})") from None
    if key is not None:
        yield key, members


def text_of(members: dict[str, bytes], text_field: str) -> bytes | None:
    """The text of a sample, in UTF-8; None if it has no text.  ValueError: its JSON is invalid."""
    if "txt" in members:
        return members["txt"]
    record: Any = parse_json(members["json"]) if "json" in members else None
    text = record.get(text_field) if isinstance(record, dict) else None
    return text.encode() if isinstance(text, str) else None
