"""Bounded context-free languages (arXiv 2112.09174): their machines, labels, and words drawn uniformly.

A word is a sequence of symbols from 2 on; 0 is the start and 1 the end.  A language is a pushdown machine: after each
symbol there is a state, from 1 on, and a stack of symbols.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

START, END, FIRST = 0, 1, 2

Stack = tuple[int, ...]


@dataclass(frozen=True)
class Configuration:
    """Where a machine is.

    Attributes:
        state: from 1 on.
        stack: symbols, the top last.
        used: what else counts towards a bound of the language, see `Language.bound`.
    """

    state: int = 1
    stack: Stack = ()
    used: int = 0


class Language(ABC):
    """A language whose machine never needs to guess."""

    letters: str
    """a character for each symbol, from symbol 2 on"""
    states: int
    """number of states"""

    @abstractmethod
    def moves(self, at: Configuration) -> Iterator[tuple[int, Configuration]]:
        """Every symbol that may come next, and where it leads."""

    @abstractmethod
    def accepts(self, at: Configuration) -> bool:
        """Whether a word may end here."""

    def kind(self, at: Configuration) -> object:
        """Configurations with the same key have equally many continuations of each length; used to count words."""
        return at.state, len(at.stack), at.used

    def run(self, word: Sequence[int]) -> list[Configuration] | None:
        """Where the machine is before and after each symbol of a word; None if a symbol has no move."""
        found = [Configuration()]
        for symbol in word:
            after = dict(self.moves(found[-1])).get(symbol)
            if after is None:
                return None
            found.append(after)
        return found

    def legal(self, at: Configuration) -> list[int]:
        """Symbols that may come next, the end among them."""
        return ([END] if self.accepts(at) else []) + [symbol for symbol, _ in self.moves(at)]

    def text(self, word: Sequence[int]) -> str:
        return "".join(self.letters[symbol - FIRST] for symbol in word)


class Blocks(Language):
    """One or more blocks a^n b^n.  State 2 follows a b."""

    letters, states = "ab", 2

    def moves(self, at: Configuration) -> Iterator[tuple[int, Configuration]]:
        if at.state == 1 or not at.stack:
            yield FIRST, Configuration(1, (*at.stack, FIRST))
        if at.stack:
            yield FIRST + 1, Configuration(2, at.stack[:-1])

    def accepts(self, at: Configuration) -> bool:
        return not at.stack


@dataclass(frozen=True)
class Dyck(Language):
    """Well-nested brackets: all of them, unlike those of the authors' generator.

    Attributes:
        types: kinds of brackets [k].
        depth: deepest nesting [m].
    """

    types: int = 2
    depth: int = 4
    letters: str = field(init=False)
    states: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "letters", "([{<"[: self.types] + ")]}>"[: self.types])

    def moves(self, at: Configuration) -> Iterator[tuple[int, Configuration]]:
        if len(at.stack) < self.depth:
            for symbol in range(FIRST, FIRST + self.types):
                yield symbol, Configuration(1, (*at.stack, symbol))
        if at.stack:
            yield at.stack[-1] + self.types, Configuration(1, at.stack[:-1])

    def accepts(self, at: Configuration) -> bool:
        return not at.stack


class Parity(Language):
    """Words of 1 and 0 with an even number of 0.  State 2 is an odd number so far; there is no stack."""

    letters, states = "10", 2

    def moves(self, at: Configuration) -> Iterator[tuple[int, Configuration]]:
        yield FIRST, at
        yield FIRST + 1, Configuration(3 - at.state)

    def accepts(self, at: Configuration) -> bool:
        return at.state == 1


@dataclass(frozen=True)
class Palindromes(Language):
    """One to `most` blocks w c w^R: a word, the centre mark, the word backwards.  State 2 follows a mark.

    Attributes:
        types: letters of w [k].
        depth: longest w [n].
        most: blocks [m].
    """

    types: int = 2
    depth: int = 4
    most: int = 2
    letters: str = field(init=False)
    states: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "letters", "abde"[: self.types] + "c")

    def moves(self, at: Configuration) -> Iterator[tuple[int, Configuration]]:
        if at.state == 2 and at.stack:
            yield at.stack[-1], Configuration(2, at.stack[:-1], at.used)
            return
        if at.used == self.most:
            return
        if len(at.stack) < self.depth:
            for symbol in range(FIRST, FIRST + self.types):
                yield symbol, Configuration(1, (*at.stack, symbol), at.used)
        yield FIRST + self.types, Configuration(2, at.stack, at.used + 1)

    def accepts(self, at: Configuration) -> bool:
        return at.state == 2 and not at.stack


LANGUAGES: dict[str, Callable[[int, int], Language]] = {
    "anbn": lambda types, depth: Blocks(),
    "dyck": Dyck,
    "parity": lambda types, depth: Parity(),
    "palindrome": Palindromes,
}
"""By name, from the number of types and the depth; not all have both."""


class Words:
    """Words of a language of 1 to `longest` symbols, all equally likely.

    The words of a length are counted from the end, and a symbol is drawn by the share of words that continue with it.
    """

    def __init__(self, language: Language, longest: int) -> None:
        self.language, self.longest = language, longest
        self._counts: dict[tuple[object, int], int] = {}
        self.by_length = [self.continuations(Configuration(), length) for length in range(1, longest + 1)]

    def continuations(self, at: Configuration, length: int) -> int:
        """How many ways there are to continue for exactly `length` symbols and end."""
        if length == 0:
            return int(self.language.accepts(at))
        key = self.language.kind(at), length
        if key not in self._counts:
            self._counts[key] = sum(self.continuations(after, length - 1) for _, after in self.language.moves(at))
        return self._counts[key]

    def draw(self, generator: random.Random) -> list[int]:
        """One word.  There must be one (`by_length`)."""
        place = generator.randrange(sum(self.by_length))
        length = 1
        while place >= self.by_length[length - 1]:
            place -= self.by_length[length - 1]
            length += 1
        at, word = Configuration(), []
        for left in range(length - 1, -1, -1):
            symbol, at, place = self._chosen(at, left, place)
            word.append(symbol)
        return word

    def _chosen(self, at: Configuration, left: int, place: int) -> tuple[int, Configuration, int]:
        """The next symbol of word number `place`, where it leads, and the word's number among those."""
        for symbol, after in self.language.moves(at):
            share = self.continuations(after, left)
            if place < share:
                return symbol, after, place
            place -= share
        raise ValueError(f"there is no word number {place} beyond {at}")


@dataclass(frozen=True)
class Labels:
    """The labels of a word at each position: the start, its symbols, and the end.

    Attributes:
        symbols: 0, the word, 1.
        states: of the machine after each; 0 behind the end.
        stacks: after each.
        legal: which symbols may be at each position, given those before it; none at the start.
    """

    symbols: list[int]
    states: list[int]
    stacks: list[Stack]
    legal: list[list[int]]


def labels(language: Language, word: Sequence[int]) -> Labels | None:
    """Labels of a word; None if it is not in the language."""
    found = language.run(word)
    if found is None or not language.accepts(found[-1]):
        return None
    return Labels(
        [START, *word, END],
        [*(at.state for at in found), 0],
        [*(at.stack for at in found), ()],
        [[], *(language.legal(at) for at in found)],
    )


def legal_share(language: Language, word: Sequence[int], predicted: Sequence[int]) -> float:
    """The metric of the paper: share of predictions that could follow the beginning of the word before them.

    Args:
        word: of the language.
        predicted: for each position from its first symbol to its end, len(word) + 1 symbols.
    """
    found = language.run(word) or []
    allowed = [set(language.legal(at)) for at in found]
    if len(allowed) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions for a word of {len(word)} symbols and its end")
    return sum(symbol in legal for symbol, legal in zip(predicted, allowed, strict=True)) / len(predicted)
