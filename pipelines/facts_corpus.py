"""Facts in real text: each is stated once and asked for once, a known number of windows later.

"The code of the red tower is 4817." stands before some line of a document, and "What is the code of the red tower?
4817." before another one.  The code is four random digits that occur nowhere else in the document: only the statement
helps to guess them, so a model without memory of it pays log2(10) bits for each.  The document around the sentences is
whole and unchanged.  How many facts are open at a time, stated and not yet asked for, can be limited: with one, a model
has to keep a single code through real text.
"""

import heapq
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from brt_dist.errors import DataError
from pipelines.corpora import Corpus, Text, fetch_books, load_corpus, write_corpus

DIGITS = 4
DISTANCES = (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000)  # windows, equal ratios
QUESTIONS = "questions"  # folder beside train/ and validation/, with a file of questions for each
_QUALITIES = (
    "red", "blue", "green", "white", "black", "grey", "brown", "golden", "silver", "purple", "small", "large", "old",
    "new", "round", "square", "narrow", "wide", "high", "low", "open", "closed", "wet", "dry", "cold", "warm", "dark",
    "bright", "empty", "heavy", "quiet", "broken",
)  # fmt: skip
_THINGS = (
    "tower", "door", "river", "box", "bridge", "lamp", "garden", "ship", "mirror", "table", "stone", "window", "mill",
    "well", "gate", "horse", "book", "coat", "wheel", "bell", "clock", "field", "forest", "house", "island", "kettle",
    "ladder", "market", "nest", "oven", "pillar", "road", "saddle", "tent", "valley", "wagon", "yard", "anchor", "boat",
    "candle",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How facts are put into text.

    Attributes:
        window: bytes of a window.
        every: bytes of text from one statement to the next, about; more where as many facts are open as may be.
        farthest: largest distance of a question, in windows.
        at_once: facts that may be open at a time; None: any number.
        copies: how many times a document appears, each time with other facts.
        seed: of the facts.
    """

    window: int
    every: int
    farthest: int = DISTANCES[-1]
    at_once: int | None = None
    copies: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A fact of a document.

    Attributes:
        name: of the thing that has the code.
        code: the answer.
        windows: least distance that was wanted, in windows.
        told: byte of the document at which the code is stated.
        asked: byte at which it is the answer.
    """

    name: str
    code: str
    windows: int
    told: int
    asked: int


def telling(name: str) -> bytes:
    """The text before a code that is stated."""
    return f"The code of the {name} is ".encode()


def asking(name: str) -> bytes:
    """The text before a code that is asked for."""
    return f"What is the code of the {name}? ".encode()


def write_facts(folder: Path, source: Corpus, settings: Settings) -> Corpus:
    """Put facts into the documents of a corpus.

    FOLDER/questions/train.jsonl and validation.jsonl have a line for each :class:`Question`, with its document.

    Args:
        folder: of the new corpus.
        source: the corpus with the text.
        settings: which facts.

    Raises:
        DataError: no document has room for a fact; `folder` holds something.
    """
    parts: dict[str, dict[str, Text]] = {"train": {}, "validation": {}, QUESTIONS: {}}
    for part, names in (("train", source.train), ("validation", source.validation)):
        lines = list[str]()
        for name, copy in product(names, range(settings.copies)):
            path = Path(source.folder, part, name)
            generator = random.Random(f"{settings.seed} {part} {name} {copy}")
            text, found = with_facts(path.read_bytes(), settings, generator)
            document = f"{path.stem}.{copy}{path.suffix}" if settings.copies > 1 else name
            parts[part][document] = Text(text, path.stat().st_mtime)
            lines += (json.dumps({"document": document, **asdict(question)}) + "\n" for question in found)
        if not lines:
            raise DataError(
                f"{source.folder}/{part}: no document is longer than a window of {settings.window} bytes and has two "
                "lines; nearest: a smaller --window"
            )
        parts[QUESTIONS][f"{part}.jsonl"] = Text("".join(lines).encode(), 0.0)
    limit = "" if settings.at_once is None else f", at most {settings.at_once} at a time"
    origin = (
        f"facts that are stated once and asked for once, 1 to {settings.farthest} windows of {settings.window} bytes "
        f"later, one per {settings.every} bytes or so{limit}, seed {settings.seed}, in: {source.origin}"
    )
    return write_corpus(folder, origin, parts)


def put_facts_into(source: Path | None, folder: Path, settings: Settings) -> Corpus:
    """Put facts into an existing corpus; None: into the books, which are fetched.

    Raises:
        DataError: there is no corpus in `source`.
    """
    if source is not None:
        return write_facts(folder, load_corpus(source), settings)
    with TemporaryDirectory() as place:
        return write_facts(folder, fetch_books(Path(place, "books")), settings)


def with_facts(text: bytes, settings: Settings, generator: random.Random) -> tuple[bytes, list[Question]]:
    """A document with facts between its lines, and its questions in the order in which they are asked.

    A question comes at the first line at which its answer is far enough from the statement.
    """
    window, distances = settings.window, [windows for windows in DISTANCES if windows <= settings.farthest]
    most = math.inf if settings.at_once is None else settings.at_once
    names, codes = _names(text, generator), _codes(text, generator)
    due: list[tuple[int, str, str, int, int]] = []  # where a name may be asked for; its code, distance, statement
    pieces, found, here, read = list[bytes](), list[Question](), 0, 0
    next_telling = generator.randrange(settings.every)

    def put(piece: bytes) -> None:
        nonlocal here
        pieces.append(piece)
        here += len(piece)

    for line in [*text.splitlines(keepends=True), b""]:
        while due and here + len(asking(due[0][1])) >= due[0][0]:
            _, name, code, distance, told = heapq.heappop(due)
            put(asking(name))
            found.append(Question(name, code, distance, told, here))
            put(f"{code}.\n".encode())
        left = len(text) - read  # the rest is at least as long, so what is asked within it is asked
        if read >= next_telling and left > window and len(due) < most:
            name, code = next(names, ""), next(codes, "")
            if not name or not code:
                next_telling = len(text)
            else:
                distance = generator.choice([windows for windows in distances if windows * window < left])
                put(telling(name))
                heapq.heappush(due, (here + distance * window, name, code, distance, here))
                put(f"{code}.\n".encode())
                next_telling += settings.every
        put(line)
        read += len(line)
    return b"".join(pieces), found


def _names(text: bytes, generator: random.Random) -> Iterator[str]:
    """Names that the document does not have, in random order."""
    names = [f"{quality} {thing}" for quality, thing in product(_QUALITIES, _THINGS)]
    generator.shuffle(names)
    return (name for name in names if name.encode() not in text)


def _codes(text: bytes, generator: random.Random) -> Iterator[str]:
    """Codes whose digits occur nowhere in the document, in random order."""
    there = {int(digits) for digits in re.findall(rb"(?=([0-9]{%d}))" % DIGITS, text)}
    codes = [code for code in range(10**DIGITS) if code not in there]
    generator.shuffle(codes)
    return (f"{code:0{DIGITS}d}" for code in codes)
