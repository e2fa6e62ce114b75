"""Text files: one file, one document."""

from collections.abc import Iterator

from brt_dist.errors import DataError
from pipelines.sources.base import FileKind
from pipelines.sources.documents import BadDocument, Document, Unit, document_of
from pipelines.sources.places import opened
from pipelines.sources.signatures import format_of


class Text(FileKind):
    about = "a text file"
    suffixes = (".txt",)

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        yield read_text(unit)


def read_text(unit: Unit) -> Document | BadDocument:
    """The whole file.  DataError: it is not the one that was listed."""
    with opened(unit.url) as file:
        data = file.read()
    if len(data) != unit.end:
        raise DataError(f"{unit.url}: {len(data)} bytes, it had {unit.end} when the build began; start the build again")
    if (other := format_of(data)) is not None:
        return BadDocument(unit.name, f"{other}, not UTF-8 text")
    return document_of(data, unit.name)
