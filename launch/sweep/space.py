"""Sweeps that are not grids: random draws from ranges, and runs listed in a file.  Pure, except for reading it."""

import math
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brt_dist.errors import ConfigError
from brt_dist.reading import read_text
from launch.sweep.grid import EXAMPLES, RANGE, Axis, Point, listed_values, named, parse, problem_of_key

_LOG_FROM = 10.0  # a range whose ends have at least this ratio is drawn on a logarithmic scale
_DIGITS = 3  # significant digits of a drawn number
_TRIES = 100  # for each run, to find one that is not there yet
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Range:
    """Numbers between two ends.

    Attributes:
        key: what gets the number.
        low, high: the ends, which may be drawn too.
        whole: only whole numbers are drawn.
    """

    key: str
    low: float
    high: float
    whole: bool

    @property
    def size(self) -> float:
        """How many values it has."""
        return self.high - self.low + 1 if self.whole else math.inf

    def draw(self, draws: random.Random) -> str:
        by_logarithm = self.low > 0 and self.high / self.low >= _LOG_FROM
        if by_logarithm:
            value = math.exp(draws.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = draws.uniform(self.low, self.high)
        if self.whole:
            return str(round(value))
        return f"{min(max(float(f'{value:.{_DIGITS}g}'), self.low), self.high):.12g}"


def random_points(given: Sequence[str], count: int, seed: int) -> list[Point]:
    """Runs with values drawn at random, the same for the same arguments; a larger count begins with the same runs.

    Args:
        given: `key=LOW..HIGH` or `key=a,b,c`.  A range is drawn on a logarithmic scale if its ends are positive and
            differ by a factor of 10 or more, else evenly; between whole numbers, whole numbers are drawn.
        count: of the runs.
        seed: of the draws.

    Raises:
        ConfigError: all that is wrong with the ranges, or there are fewer combinations than runs.
    """
    found = parse("--random", given, _to_draw_from)
    draws, made = random.Random(seed), dict[tuple[str, ...], None]()
    size = math.prod(axis.size if isinstance(axis, Range) else len(axis.values) for axis in found)
    for _ in range(count * _TRIES if size >= count else 0):
        if len(made) == count:
            break
        made[tuple(axis.draw(draws) if isinstance(axis, Range) else draws.choice(axis.values) for axis in found)] = None
    if len(made) < count:
        most = int(size) if size < count else len(made)
        raise ConfigError(f"--count {count}: --random has only {most} combinations; nearest: --count {most}")
    keys = [axis.key for axis in found]
    return named([dict(zip(keys, values, strict=True)) for values in made])


def _to_draw_from(key: str, text: str) -> Range | Axis:
    if (ends := RANGE.fullmatch(text)) is not None:
        low, high = float(ends[1]), float(ends[2])
        if math.isinf(low) or math.isinf(high):
            raise ValueError(f"{key}={text}: an end is too large")
        if low >= high:
            nearest = f"{key}={ends[2]}..{ends[1]}" if low > high else f"{key}={ends[1]} for all runs"
            raise ValueError(f"{key}={text}: the first end must be below the second; nearest: {nearest}")
        return Range(key, low, high, whole=all(end.lstrip("+-").isdigit() for end in ends.groups()))
    if ".." in text and not set(text) & set(",/[{'\""):
        raise ValueError(f"{key}={text} is not a range of two numbers; example: {EXAMPLES['--random']}")
    values = listed_values(key, text)
    if len(values) == 1:
        raise ValueError(
            f"{key}={text} is one value, neither a range (LOW..HIGH) nor a list (A,B,...); to set it in all runs, give "
            f"{key}={text} without --random"
        )
    return Axis(key, values)


def listed_points(path: Path) -> list[Point]:
    """The runs of a file: a line each, with `key=value` words as on a command line; # begins a comment.

    Raises:
        ConfigError: it cannot be read, or all that is wrong with its lines.
    """
    try:
        text = read_text(path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"--list {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--list {path}: {error}") from None
    problems, runs = list[str](), dict[int, dict[str, str]]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        pairs = [(key.strip(), value) for key, _, value in (word.partition("=") for word in words)]
        settings = dict(pairs)
        wrong = [
            f"{word!r} is not of the form key=value"
            for word, (key, value) in zip(words, pairs, strict=True)
            if not key or not value
        ]
        if not wrong:
            wrong = [problem for key in settings if (problem := problem_of_key(key)) is not None]
            wrong += [f"{key} is given twice" for key in settings if [name for name, _ in pairs].count(key) > 1]
        problems += [f"line {number}: {problem}" for problem in wrong]
        if settings and settings in runs.values():
            first = next(line for line, other in runs.items() if other == settings)
            problems.append(f"line {number}: the same run as line {first}")
        elif settings:
            runs[number] = settings
    if not runs and not problems:
        problems.append("holds no run; example of a line: optimizer.learning_rate=0.001 model.width=512")
    if problems:
        raise ConfigError("\n".join([f"--list {path}:", *problems]))
    return named(list(runs.values()))
