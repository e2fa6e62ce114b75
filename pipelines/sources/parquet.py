"""Parquet files: one row, one document."""

from collections.abc import Iterator

from pipelines.sources.base import FileKind
from pipelines.sources.documents import BadDocument, Document, Unit, document_of
from pipelines.sources.packed import BrokenFile, NoText, parquet_column
from pipelines.sources.places import opened


class Parquet(FileKind):
    about = "a row of a Parquet file"
    suffixes = (".parquet",)

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        rows = 0
        with opened(unit.url) as file:
            try:
                for value in parquet_column(file, self.text_field):
                    rows += 1
                    place = f"{unit.name}, row {rows}"
                    if value is None:
                        yield BadDocument(place, f"field {self.text_field!r} is not text")
                    else:
                        yield document_of(value, place)
            except NoText as error:  # each row would have been a document
                reason, total = error.args
                yield from (BadDocument(f"{unit.name}, row {row}", reason) for row in range(1, total + 1))
            except BrokenFile as error:
                yield BadDocument(f"{unit.name}, after row {rows}", str(error))
