"""What sources consist of and yield: units of work, documents, and what is not a document."""

import os
import re
from dataclasses import dataclass

# Left out by the rules of a source or on request: counted and listed, but never an error.
DUPLICATE = "a duplicate"
VENDORED_FILE = "a vendored file"
BINARY_FILE = "a binary file"
LINK = "a link"
SUBMODULE = "a submodule"
EMPTY_FILE = "an empty file"
PART_OF_NOTHING = "a part that no document of its folder or above includes"
BY_RULE = frozenset((DUPLICATE, VENDORED_FILE, BINARY_FILE, LINK, SUBMODULE, EMPTY_FILE, PART_OF_NOTHING))
# Skipped when a folder is listed, and counted only by name.
HIDDEN = "hidden (name starts with a dot)"
LINK_TO_FOLDER = "link to a folder"
NOT_READ = "{} (not read)"
_SUFFIX = re.compile(r"[^.].*(\.[a-z0-9_+-]{1,12})", re.ASCII)


def not_read(name: str) -> str:
    """Why a file of a folder is left out that no kind of source reads, by its name."""
    found = _SUFFIX.fullmatch(name.lower())
    return NOT_READ.format(found[1] if found else "without a suffix")


@dataclass(frozen=True)
class Document:
    """One document.  place: where it came from, without folders of this machine."""

    text: str
    place: str


@dataclass(frozen=True)
class BadDocument:
    """What should have been a document.  place: file, and line or byte in it.  reason: one of a few fixed phrases."""

    place: str
    reason: str

    @property
    def is_by_rule(self) -> bool:
        """Whether it was meant to be left out, so that nothing is wrong."""
        return self.reason in BY_RULE


@dataclass(frozen=True)
class Unit:
    """Bytes [start, end) of a file.

    Attributes:
        name: its place.
        format: its kind of source, after which a dot and more may follow (`jsonl.gz`).
        stamp: changes when the file does.
    """

    url: str
    name: str
    format: str
    start: int
    end: int
    stamp: str

    @property
    def kind(self) -> str:
        """Its kind of source, by name."""
        return self.format.partition(".")[0]


def printable(name: str) -> str:
    """A name that any JSON reader accepts: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def document_of(data: bytes, place: str) -> Document | BadDocument:
    """The document of some UTF-8 text."""
    if not data:
        return BadDocument(place, "empty")
    try:
        return Document(data.decode(), place)
    except UnicodeDecodeError as error:
        return BadDocument(f"{place}, byte {error.start}", "not UTF-8")
