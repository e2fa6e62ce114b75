"""Reading units of a source: their documents, and what is not a document, in order."""

from collections.abc import Iterable, Iterator

from brt_dist.errors import DataError, system_error
from brt_dist.kinds import SOURCES
from pipelines.sources.base import SourceKind
from pipelines.sources.documents import BadDocument, Document, Unit
from pipelines.sources.places import answering


def read_units(units: Iterable[Unit], text_field: str) -> Iterator[Document | BadDocument]:
    """The documents of units, in order.  Lines of only white space are skipped.

    Args:
        units: of any kinds.
        text_field: the field of a record that holds the text.

    Raises:
        DataError: the file is not the one that was listed, or cannot be read.
        PlatformError: the same for a remote file.
    """
    readers: dict[str, SourceKind] = {}
    for unit in units:
        if unit.kind not in readers:
            readers[unit.kind] = SOURCES[unit.kind](text_field)
        try:
            with answering(unit.url):
                yield from readers[unit.kind].read(unit)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            yield BadDocument(unit.name, f"cannot be read ({system_error(error)})".replace(f"{unit.url}: ", ""))
        except OSError as error:
            raise DataError(f"{unit.url}: cannot be read: {error}") from None
