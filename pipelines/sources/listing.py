"""Sources as they are given, and the units of work that they are listed as, in a stated order."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from brt_dist.errors import DataError
from brt_dist.kinds import SOURCES
from pipelines.sources.base import FileKind, TreeKind
from pipelines.sources.documents import NOT_READ, Unit, printable
from pipelines.sources.places import answering, filesystem_of, is_remote, is_there, units_of

_FILES = "files"  # the kind of a source that is not a tree: each of its files has its own
_OTHERWISE = "text"  # how a file is read whose suffix belongs to no kind

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MOST_REASONS = 20  # for leaving out files of a source

# Datasets of other libraries, by the ends of names in their folder.
_OF_OTHERS = {
    "it holds a dataset saved by Hugging Face's datasets; nearest: hf:{folder}": ("state.json", ".arrow"),
    "it holds datasets saved by Hugging Face's datasets; nearest: hf:{folder}/SPLIT": ("dataset_dict.json",),
    "it holds an MDS dataset; nearest: mds:{folder}": ("index.json", ".mds"),
    "it holds a compressed MDS dataset; nearest: mds:{folder}": ("index.json", ".mds.zstd"),
    "it holds tokens of Megatron; nearest: brt data index {folder}/NAME.bin --tokenizer TOKENIZER --out DATASET": (
        ".bin",
        ".idx",
    ),
}


@dataclass(frozen=True)
class Source:
    """A folder or a file.

    Attributes:
        given: path or URL.
        name: its last path component, under which its documents are placed.
        suffixes: of the files that are read in a folder.
        kind: the name of a tree kind, or `files`.
    """

    given: str
    name: str
    suffixes: tuple[str, ...]
    kind: str = _FILES

    def units(self, size: int, left_out: Counter[str] | None = None) -> Iterator[Unit]:
        """All units in order; a kind that can cut its files gives ranges of at most `size` bytes.

        Args:
            size: in bytes.
            left_out: counts the files and folders that are left out, by reason.

        Raises:
            DataError: the source holds nothing that its kind reads.
        """
        with answering(self.given):
            yield from self._units(size, Counter() if left_out is None else left_out)

    def _units(self, size: int, left_out: Counter[str]) -> Iterator[Unit]:
        found = False
        trees_units = () if self.kind == _FILES else trees()[self.kind].units(self.given, self.name)
        for unit in self._file_units(size, left_out) if self.kind == _FILES else trees_units:
            found = True
            yield unit
        if found:
            return
        if self.kind != _FILES:
            raise DataError(f"{self.given}: {trees()[self.kind].wanted}")
        held = ", ".join(f"{count:,} {reason}" for reason, count in most_common(left_out).items())
        raise DataError(
            f"{self.given}: no files that end in {' or '.join(self.suffixes)}{f' (it holds {held})' if held else ''}; "
            f"{self._nearest()}"
        )

    def _nearest(self) -> str:
        """What to do about a folder without text files: it may be another library's dataset."""
        filesystem, path = filesystem_of(self.given)
        names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)}
        for form, signs in _OF_OTHERS.items():
            if all(any(name.endswith(sign) for name in names) for sign in signs):
                return form.format(folder=self.given)
        return "--suffix chooses other ones"

    def _file_units(self, size: int, left_out: Counter[str]) -> Iterator[Unit]:
        kinds = files()
        filesystem, path = filesystem_of(self.given)
        # A file that is given directly is read whatever its name.
        suffixes = self.suffixes if filesystem.isdir(path) else ()
        form = partial(_format, suffixes=suffixes, kinds=kinds)
        for file in units_of(self.given, self.name, form, lambda reason: left_out.update((reason,))):
            yield from kinds[file.kind].units(file, size)


def most_common(left_out: Counter[str]) -> dict[str, int]:
    """The reasons with the highest counts, and the rest as one: a folder may hold files with any number of suffixes."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    told, rest = dict(ordered[:_MOST_REASONS]), sum(count for _, count in ordered[_MOST_REASONS:])
    return told | ({NOT_READ.format("other suffixes"): rest} if rest else {})


def files() -> dict[str, type[FileKind]]:
    """The kinds that read files, by name."""
    return {name: kind for name, kind in SOURCES.items() if issubclass(kind, FileKind)}


def trees() -> dict[str, type[TreeKind]]:
    """The kinds that read folders as a whole, by name."""
    return {name: kind for name, kind in SOURCES.items() if issubclass(kind, TreeKind)}


def spellings() -> list[tuple[str, str]]:
    """How to give each kind on the command line, and what one of its documents is."""
    found = [(", ".join(kind.suffixes), kind.about) for kind in files().values()]
    return found + [(f"{name}:FOLDER", kind.about) for name, kind in trees().items()]


def default_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that are read in a folder."""
    kinds = [kind for kind in files().values() if kind.in_folders]
    return tuple(suffix for kind in kinds for suffix in kind.suffixes if suffix not in kind.only_alone)


def open_sources(specs: Sequence[str], suffixes: Sequence[str] = ()) -> list[Source]:
    """Sources as they were given.

    Raises:
        DataError: none, missing, or two of the same name.
    """
    if not specs:
        raise DataError(f"no source; give a file or a folder of files ({', '.join(default_suffixes())}), {_prefixes()}")
    sources = []
    for told in specs:
        kind, spec = _kind(told)
        filesystem, path = filesystem_of(spec)
        with answering(spec):
            if not is_there(filesystem, path):
                raise DataError(f"{spec}: no such file or folder{_nearest(spec) if kind == _FILES else ''}")
            if kind != _FILES and not filesystem.isdir(path):
                raise DataError(f"{told}: {kind} sources are folders")
        given = spec if is_remote(spec) else os.path.abspath(spec)
        name = printable(path.rstrip("/").rsplit("/", 1)[-1]) or "root"
        sources.append(Source(given, name, tuple(suffixes) or default_suffixes(), kind))
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sources are named {name!r}; documents are placed by that name, rename one of them")
    return sources


def _kind(told: str) -> tuple[str, str]:
    """The declared kind of a source (`git:FOLDER`), and its path or URL."""
    name, colon, spec = told.partition(":")
    if not colon or spec.startswith("//") or name not in trees():
        return _FILES, told
    if (why := trees()[name].only_here) is not None and is_remote(told):
        raise DataError(f"{told}: {why}")
    return name, spec


def _prefixes() -> str:
    *names, last = (f"{name}:FOLDER" for name in trees())
    return f"{', '.join(names)} or {last}" if names else last


def _nearest(spec: str) -> str:
    """What a missing source may have been meant to be."""
    name, colon, _ = spec.partition(":")
    near = difflib.get_close_matches(name, trees(), n=1) if colon and not is_remote(spec) else []
    if near:
        return f"; nearest: {near[0]}:FOLDER"
    return f"; a dataset of Hugging Face's hub is hf://datasets/{spec}" if _HUB_NAME.fullmatch(spec) else ""


def _format(name: str, suffixes: tuple[str, ...], kinds: dict[str, type[FileKind]]) -> str | None:
    """How a file is read, by its name; None: it does not belong to this source."""
    name = name.lower()
    if suffixes and not name.endswith(tuple(suffix.lower() for suffix in suffixes)):
        return None
    fits = [(len(suffix), kind, suffix) for kind in kinds for suffix in kinds[kind].suffixes if name.endswith(suffix)]
    if not fits:
        return _OTHERWISE
    _, kind, suffix = max(fits)
    variant = kinds[kind].variants.get(suffix)
    return f"{kind}.{variant}" if variant else kind
