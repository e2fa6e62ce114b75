"""Reading units of a source: their documents, and what is none, in order."""

from collections.abc import Iterable, Iterator

from brt_dist.errors import DataError
from pipelines.sources.documents import BadDocument, Document, Unit, document_of
from pipelines.sources.latex_trees import Inputs, read_latex
from pipelines.sources.places import opened
from pipelines.sources.records import read_jsonl, read_parquet, read_tar


def read_units(units: Iterable[Unit], text_field: str) -> Iterator[Document | BadDocument]:
    """The documents of units, in order.  text_field: the field of a record that holds the text.

    Lines of white space alone hold no record and are passed over.
    DataError: the file is not the one that was listed.
    """
    inputs = Inputs()
    for unit in units:
        yield from _read(unit, text_field, inputs)


def _read(unit: Unit, text_field: str, inputs: Inputs) -> Iterator[Document | BadDocument]:
    try:
        if unit.format == "text":
            yield _read_text(unit)
        elif unit.format == "git":
            from pipelines.sources.checkouts import read_checkout

            yield from read_checkout(unit)
        elif unit.format == "latex":
            yield from read_latex(unit, _read_text(unit), inputs)
        elif unit.format == "parquet":
            yield from read_parquet(unit, text_field)
        elif unit.format == "tar":
            yield from read_tar(unit, text_field)
        else:
            yield from read_jsonl(unit, text_field)
    except OSError as error:
        raise DataError(f"{unit.url}: cannot be read: {error}") from None


def _read_text(unit: Unit) -> Document | BadDocument:
    with opened(unit.url) as file:
        data = file.read()
    if len(data) != unit.end:
        raise DataError(f"{unit.url}: {len(data)} bytes, it had {unit.end} when the build began; start the build again")
    return document_of(data, unit.name)
