"""Sources as they are given, and the units of work that they are listed as, in a stated order."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from brt_dist.errors import DataError
from pipelines.sources.documents import Format, Unit, printable
from pipelines.sources.places import filesystem_of, is_remote, stamp, walk

TEXT_SUFFIXES = (".txt",)
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
DEFAULT_SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, ".parquet")

Kind = Literal["files", "git", "latex"]


@dataclass(frozen=True)
class Source:
    """A folder or a file.  name: its last path component, under which its documents are placed."""

    given: str
    name: str
    suffixes: tuple[str, ...]
    kind: Kind = "files"

    def units(self, size: int) -> Iterator[Unit]:
        """All units in order; plain JSONL files are cut into ranges of at most `size` bytes.

        DataError: nothing there, or no file with one of the suffixes.
        """
        found = False
        if self.kind == "git":
            from pipelines.sources.checkouts import checkout_units

            for unit in checkout_units(self.given, self.name):
                found = True
                yield unit
            if not found:
                raise DataError(f"{self.given}: no git checkout there or below (a folder that holds .git)")
            return
        filesystem, path = filesystem_of(self.given)
        for info, parts in walk(filesystem, path, (self.name,)):
            form: Format | None = _format(parts[-1], self.suffixes if len(parts) > 1 else ())
            if self.kind == "latex":
                form = "latex" if parts[-1].endswith(".tex") else None
            if form is None:
                continue
            found = True
            url = filesystem.unstrip_protocol(info["name"]) if is_remote(self.given) else info["name"]
            name, length, mark = printable("/".join(parts)), int(info["size"] or 0), stamp(info)
            step = size if form == "jsonl" else max(length, 1)
            for start in range(0, max(length, 1), step):
                yield Unit(url, name, form, start, min(start + step, length), mark)
        if not found and self.kind == "latex":
            raise DataError(f"{self.given}: no .tex files")
        if not found:
            raise DataError(
                f"{self.given}: no files that end in {' or '.join(self.suffixes)}; --suffix chooses other ones"
            )


def open_sources(specs: Sequence[str], suffixes: Sequence[str] = ()) -> list[Source]:
    """Sources as they were given.  DataError: none, missing, or two of the same name."""
    if not specs:
        raise DataError("no source: give at least one folder of text files, JSONL or Parquet file")
    sources = []
    for told in specs:
        kind, spec = _kind(told)
        filesystem, path = filesystem_of(spec)
        if not filesystem.exists(path):
            raise DataError(f"{spec}: no such file or folder")
        if kind != "files" and not filesystem.isdir(path):
            raise DataError(f"{told}: {kind} sources are folders")
        given = spec if is_remote(spec) else os.path.abspath(spec)
        name = printable(path.rstrip("/").rsplit("/", 1)[-1]) or "root"
        sources.append(Source(given, name, tuple(suffixes) or DEFAULT_SUFFIXES, kind))
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sources are named {name!r}; documents are placed by that name, rename one of them")
    return sources


def _kind(told: str) -> tuple[Kind, str]:
    """What a source was said to be, `git:` or `latex:`, and its path or URL.  DataError: git at a URL."""
    if told.startswith("git:") and not told.startswith("git://"):
        if is_remote(told):
            raise DataError(f"{told}: git sources are checkouts on this machine; clone it first")
        return "git", told.removeprefix("git:")
    if told.startswith("latex:"):
        return "latex", told.removeprefix("latex:")
    return "files", told


def _format(name: str, suffixes: tuple[str, ...]) -> Format | None:
    """How a file is read, by its name; none: it is not of this source.  A file given by itself is always read."""
    if suffixes and not name.endswith(suffixes):
        return None
    for form in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "tar"):
        if name.endswith(f".{form}"):
            return form
    return "text"
