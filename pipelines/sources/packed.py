"""Files that hold many documents packed: compressed lines, and the rows of Parquet files.

Both are read as a stream, so that memory does not grow with the file.  `BrokenFile` says that the content is damaged;
errors of the storage (a server that does not answer) are passed on, since they say nothing about the content.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, cast

from pipelines.sources.documents import BadDocument, Document, Unit, document_of

Compression = Literal["gzip", "zstd"]
_ROWS = 64  # rows decoded at once: bounds memory if rows are long


class BrokenFile(Exception):
    """The content of a file is damaged or cut off; the text is a fixed phrase."""


class NoText(Exception):
    """A file without a text column; says why."""


# The last five are Arrow's, for unknown types, wrong places and impossible counts.
_DAMAGE = (
    EOFError, zlib.error, gzip.BadGzipFile, ValueError,
    NotImplementedError, LookupError, TypeError, MemoryError, OverflowError,
)  # fmt: skip


@contextmanager
def damage(kind: str) -> Iterator[None]:
    """Turn what decoders raise for damaged content into BrokenFile."""
    try:
        yield
    except _DAMAGE as error:
        raise BrokenFile(f"broken {kind} ({type(error).__name__})") from None
    except OSError as error:
        # Arrow's own errors are plain and have no number; system errors have one, network errors (timeouts) a type.
        if error.errno is not None or type(error) is not OSError:
            raise
        raise BrokenFile(f"broken {kind}") from None


def unpacked(raw: IO[bytes], compression: Compression) -> IO[bytes]:
    """The content of a compressed file; read it within `damage`."""
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
    return cast(IO[bytes], io.BufferedReader(stream))


def parquet_column(file: IO[bytes], name: str) -> Iterator[bytes | None]:
    """The UTF-8 bytes of a column of text, row by row; None where the row has no value.

    NoText: there is no such column, or it holds something else; its second argument is the number of rows.
    BrokenFile: damaged, from there on.
    """
    from pyarrow import parquet

    with damage("Parquet"):
        table = parquet.ParquetFile(file)
        schema, rows = table.schema_arrow, table.metadata.num_rows
    _kind_of_text(schema, name, rows)
    batches = table.iter_batches(_ROWS, columns=[name], use_threads=False)
    while True:
        with damage("Parquet"):
            batch: Any = next(batches, None)
            if batch is None:
                return
            values = _bytes_of(batch, name)
        yield from values


def arrow_column(file: IO[bytes], name: str) -> Iterator[bytes | None]:
    """As :func:`parquet_column`, of an Arrow file (IPC), written as a stream or as a file."""
    import pyarrow
    from pyarrow import ipc

    with damage("Arrow"):
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        table: Any = ipc.open_file(file) if is_file else ipc.open_stream(file)
    _kind_of_text(table.schema, name, 0)
    batches = (table.get_batch(number) for number in range(table.num_record_batches)) if is_file else iter(table)
    while True:
        with damage("Arrow"):
            try:
                batch = next(batches, None)
            except pyarrow.ArrowInvalid:
                raise BrokenFile("broken Arrow") from None
            if batch is None:
                return
            parts = [batch.slice(begin, _ROWS) for begin in range(0, batch.num_rows, _ROWS)]
        for part in parts:
            with damage("Arrow"):
                values = _bytes_of(part, name)
            yield from values


def documents_of(values: Iterator[bytes | None], unit: Unit, text_field: str) -> Iterator[Document | BadDocument]:
    """A document for each row of a column; if the file breaks off, a bad one that says after which row.

    Raises:
        NoText: the column is not there.
    """
    rows = 0
    try:
        for value in values:
            rows += 1
            place = f"{unit.name}, row {rows}"
            if value is None:
                yield BadDocument(place, f"field {text_field!r} is not text")
            else:
                yield document_of(value, place)
    except BrokenFile as error:
        yield BadDocument(f"{unit.name}, after row {rows}", str(error))


def _kind_of_text(schema: Any, name: str, rows: int) -> None:
    """Check that there is one column of text with this name.  NoText: there is none."""
    from pyarrow import types

    with damage("schema"):
        names = schema.names
    if name not in names:
        raise NoText(f"no field {name!r}", rows)
    if names.count(name) > 1:
        raise NoText(f"two fields are named {name!r}", rows)
    kind = schema.field(name).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise NoText(f"field {name!r} is not text", rows)


def _bytes_of(batch: Any, name: str) -> list[bytes | None]:
    import pyarrow
    from pyarrow import types

    column = batch.column(batch.schema.get_field_index(name))
    if types.is_dictionary(column.type):
        column.validate(full=True)  # places beyond the dictionary would be read
        column = column.dictionary_decode()
    if types.is_string_view(column.type):
        column = column.cast(pyarrow.large_string())
    column = column.cast(pyarrow.large_binary())
    column.validate(full=True)  # likewise places beyond the text; UTF-8 is checked document by document
    found: list[bytes | None] = column.to_pylist()
    return found
