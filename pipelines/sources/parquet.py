"""Parquet files: one row, one document."""

from collections.abc import Iterator

from pipelines.sources.base import FileKind
from pipelines.sources.documents import BadDocument, Document, Unit
from pipelines.sources.packed import NoText, documents_of, parquet_column
from pipelines.sources.places import opened


class Parquet(FileKind):
    about = "a row of a Parquet file"
    suffixes = (".parquet",)

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        with opened(unit.url) as file:
            try:
                yield from documents_of(parquet_column(file, self.text_field), unit, self.text_field)
            except NoText as error:  # each row would have been a document
                reason, total = error.args
                yield from (BadDocument(f"{unit.name}, row {row}", reason) for row in range(1, total + 1))
