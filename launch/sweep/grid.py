"""The grid of a sweep: turns `--grid key=a,b` into the settings and the name of every run.  Pure."""

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brt_dist.config.keys import leaf_keys
from brt_dist.config.older import OLDER_KEYS
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError

_OWN = ("run.directory", "run.name", "run.tracking.", "launch.")  # the same for all, or given by the sweep
_LONGEST_NAME = 100
_OPEN, _CLOSE = "[{", "]}"


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
    """Parse `key=a,b,c` options.

    Raises:
        ConfigError: all that is wrong with them, in one message.
    """
    problems, found = list[str](), list[Axis]()
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        parts = [part.strip() for part in _split(values)]
        if not equals or not all(parts):
            problems.append(f"{text!r} is not of the form key=a,b,c, for example optimizer.learning_rate=0.001,0.0003")
        elif (told := problem_of_key(key)) is not None:
            problems.append(told)
        elif key in [axis.key for axis in found]:
            problems.append(f"{key} is given twice; put all its values into one --grid")
        elif len(set(parts)) < len(parts):
            problems.append(f"{key} has the same value twice: {values}")
        else:
            found.append(Axis(key, tuple(parts)))
    if not given:
        problems.append("no --grid given; example: --grid optimizer.learning_rate=0.001,0.0003")
    if problems:
        raise ConfigError("; ".join(problems) if len(problems) == 1 else "\n".join(["--grid:", *problems]))
    return found


def points(grid: Sequence[Axis]) -> list[Point]:
    """All combinations, the last axis changing fastest."""
    keys = [axis.key for axis in grid]
    combinations = itertools.product(*(axis.values for axis in grid))
    return named([dict(zip(keys, values, strict=True)) for values in combinations])


def named(runs: Sequence[Mapping[str, str]]) -> list[Point]:
    """Runs with these settings; their names are made of all of them."""
    short = _short_names(list(dict.fromkeys(key for settings in runs for key in settings)))
    return [
        Point(_name([f"{short[key]}={value}" for key, value in settings.items()]), dict(settings)) for settings in runs
    ]


def problem_of_key(key: str) -> str | None:
    """Why a sweep cannot set this key; None: it can."""
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
