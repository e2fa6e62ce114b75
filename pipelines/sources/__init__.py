"""Sources of text.  Each kind (text files, JSONL, git checkouts, ...) is a file here and a line in `brt_dist/kinds.py`.

One document in, one document out, in a stated order: files of a folder by their path, compared component by component
as UTF-8 bytes; lines of a JSONL file and rows of a Parquet file in their order.  Names that begin with a dot, links to
folders, and files of no known kind are left out and counted.  Paths may be local or any fsspec URL.

A source is listed as units of work: a text file, a whole compressed JSONL, Parquet or tar file, a checkout, or a range
of bytes of a plain JSONL file (the lines that begin in it, so that a large file can be cut without reading it).
Reading a unit streams.
"""

from pipelines.sources.documents import BY_RULE, DUPLICATE, BadDocument, Document, Unit, printable
from pipelines.sources.listing import Source, most_common, open_sources, spellings
from pipelines.sources.reading import read_units

__all__ = [
    "BY_RULE",
    "DUPLICATE",
    "BadDocument",
    "Document",
    "Source",
    "Unit",
    "most_common",
    "open_sources",
    "printable",
    "read_units",
    "spellings",
]
