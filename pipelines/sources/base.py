"""The interface of kinds of sources.  A kind is one file in this folder and one line in `brt_dist/kinds.py`.

There are two families.  A file kind declares the suffixes of the files that it reads.  A tree kind reads a folder as a
whole and is selected by name: `NAME:FOLDER`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from pipelines.sources.documents import BadDocument, Document, Unit


class SourceKind(ABC):
    """Reads units of one kind; one object lives as long as a sequence of units is read.

    Attributes:
        about: what one document is, for the help.

    Args:
        text_field: the field of a record that holds the text.
    """

    about: ClassVar[str]

    def __init__(self, text_field: str) -> None:
        self.text_field = text_field

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        """The documents of a unit, in order, and what should have been a document."""


class FileKind(SourceKind):
    """Files with certain suffixes.

    Attributes:
        suffixes: endings of the names of its files, with the dot; the longest that fits a name wins.
        variants: for suffixes whose files are read differently, the difference (`gz`), which becomes part of the unit's
            format (`jsonl.gz`).
        only_alone: suffixes that are read in a folder only if --suffix names them, because other files have them too.
        in_folders: its files are read in a given folder; otherwise only if given directly, or by --suffix.
    """

    suffixes: ClassVar[tuple[str, ...]]
    variants: ClassVar[Mapping[str, str]] = {}
    only_alone: ClassVar[tuple[str, ...]] = ()
    in_folders: ClassVar[bool] = True

    @classmethod
    def units(cls, file: Unit, size: int) -> Iterator[Unit]:
        """A file as units of work: itself, unless the kind can cut it into ranges of at most `size` bytes."""
        yield file


class TreeKind(SourceKind):
    """A folder, read as a whole.

    Attributes:
        wanted: what the folder must hold, for the message when it holds none.
        only_here: why its folder must be on this machine, and what to do about one that is not; None: any URL will do.
    """

    wanted: ClassVar[str]
    only_here: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def units(cls, folder: str, name: str) -> Iterator[Unit]:
        """The units of a folder (a path or URL), in order; `name` is the first component of their places."""
