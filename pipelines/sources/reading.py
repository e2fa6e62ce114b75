"""Reading units of a source: their documents, and what is none, in order."""

from collections.abc import Iterable, Iterator

from brt_dist.errors import DataError
from brt_dist.kinds import SOURCES
from pipelines.sources.base import SourceKind
from pipelines.sources.documents import BadDocument, Document, Unit


def read_units(units: Iterable[Unit], text_field: str) -> Iterator[Document | BadDocument]:
    """The documents of units, in order.  Lines of white space alone hold no record and are passed over.

    Args:
        units: of any kinds.
        text_field: the field of a record that holds the text.

    Raises:
        DataError: the file is not the one that was listed, or cannot be read.
    """
    readers: dict[str, SourceKind] = {}
    for unit in units:
        if unit.kind not in readers:
            readers[unit.kind] = SOURCES[unit.kind](text_field)
        try:
            yield from readers[unit.kind].read(unit)
        except OSError as error:
            raise DataError(f"{unit.url}: cannot be read: {error}") from None
