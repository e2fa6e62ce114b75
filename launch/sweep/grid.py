"""The grid of a sweep: turns `--grid key=a,b` into the settings and the name of every run.  Pure."""

import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from brt_dist.config.keys import leaf_keys
from brt_dist.config.older import OLDER_KEYS
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError

_OWN = ("run.directory", "run.name", "run.tracking.", "launch.")  # the same for all runs, or set by the sweep
_LONGEST_NAME = 100
_OPEN, _CLOSE = "[{", "]}"
_SHOWN = 100  # characters of an option in a message
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")
EXAMPLES = {
    "--grid": "--grid optimizer.learning_rate=0.001,0.0003",
    "--random": "--random optimizer.learning_rate=0.0001..0.01",
}

A = TypeVar("A")


@dataclass(frozen=True)
class Axis:
    """A key and its values, as text: `key=value` is an override."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One run of the grid.

    Attributes:
        name: of its folder, from the values alone, so that a larger grid finds it again.
        settings: its values by key.
    """

    name: str
    settings: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.settings.items()]


def axes(given: Sequence[str]) -> list[Axis]:
    """Parse `--grid KEY=A,B,...` options.

    Raises:
        ConfigError: all that is wrong with them, in one message.
    """
    return parse("--grid", given, _axis)


def parse(option: str, given: Sequence[str], read: Callable[[str, str], A]) -> list[A]:
    """Parse the values of an option, each of the form `KEY=...`.

    Args:
        option: for messages.
        given: its values.
        read: parses a key and the text after its `=`; raises a ValueError that says what is wrong.

    Raises:
        ConfigError: all that is wrong with them, in one message.
    """
    problems, found = list[str](), dict[str, A]()
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        try:
            if not equals or not key:
                raise ValueError(f"{text[:_SHOWN]!r} is not of the form KEY=...; example: {EXAMPLES[option]}")
            if (problem := problem_of_key(key)) is not None:
                raise ValueError(problem)
            if key in found:
                raise ValueError(f"{key} is given twice; put all its values into one {option}")
            found[key] = read(key, values.strip())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join([f"{option}:", *problems]) if len(problems) > 1 else f"{option}: {problems[0]}")
    return list(found.values())


def listed_values(key: str, text: str) -> tuple[str, ...]:
    """The values of `A,B,...`.

    Raises:
        ValueError: one is empty or comes twice, or is a range.
    """
    values = tuple(part.strip() for part in _split(text))
    if not all(values):
        raise ValueError(f"{key}={text[:_SHOWN]} has an empty value; example: {EXAMPLES['--grid']}")
    for value in values:
        if RANGE.fullmatch(value):
            raise ValueError(
                f"{key}={text[:_SHOWN]} holds a range; a range goes to --random, by itself: --random {key}={value}"
            )
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"{key} has the same value twice: {twice[:_SHOWN]}")
    return values


def _axis(key: str, text: str) -> Axis:
    return Axis(key, listed_values(key, text))


def points(grid: Sequence[Axis]) -> list[Point]:
    """All combinations, the last axis changing fastest."""
    keys = [axis.key for axis in grid]
    combinations = itertools.product(*(axis.values for axis in grid))
    return named([dict(zip(keys, values, strict=True)) for values in combinations])


def named(runs: Sequence[Mapping[str, str]]) -> list[Point]:
    """Runs with these settings, which make up their names."""
    short = _short_names(list(dict.fromkeys(key for settings in runs for key in settings)))
    return [
        Point(_name([f"{short[key]}={value}" for key, value in settings.items()]), dict(settings)) for settings in runs
    ]


def problem_of_key(key: str) -> str | None:
    """Why a sweep cannot set this key; None if it can."""
    known = [*leaf_keys(Config), *OLDER_KEYS]
    if key not in known:
        near = difflib.get_close_matches(key[:200], known, n=1)
        return f"unknown key {key[:200]}" + (f"; nearest: {near[0]}" if near else "")
    if key.startswith(_OWN):
        return f"{key} cannot vary within a sweep; set it as an override for all runs"
    return None


def _split(values: str) -> Iterator[str]:
    """Split at commas outside brackets and quotes."""
    part, depth, quote = "", 0, ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            yield part
            part = ""
            continue
        part += letter
    yield part


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last component of each key, or the whole key where that is ambiguous."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _name(parts: Sequence[str]) -> str:
    """A folder name, with a digest appended if characters were replaced or cut off."""
    whole = ",".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", whole)
    if name == whole and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
