"""Sweeps that are no grid: random draws from ranges, and runs listed in a file.  Pure, but for reading that file."""

import math
import random
import shlex
from collections.abc import Sequence
from pathlib import Path

from brt_dist.errors import ConfigError
from brt_dist.reading import read_text
from launch.sweep.grid import Axis, Point, axes, named, problem_of_key

_LOG_FROM = 10.0  # ratio of the ends of a range from which on it is drawn by logarithm
_DIGITS = 3  # of a drawn number
_TRIES = 100  # for each run, to find one that is not there yet
_MOST_BYTES = 4 << 20


def random_points(given: Sequence[str], count: int, seed: int) -> list[Point]:
    """Runs with values drawn at random, the same for the same arguments; more runs begin with the same ones.

    Args:
        given: `key=LOW..HIGH` or `key=a,b,c`.  A range is drawn by logarithm if its ends are positive and differ by a
            factor of 10 or more, else evenly; between whole numbers, whole numbers are drawn.
        count: of the runs.
        seed: of the draws.

    Raises:
        ConfigError: all that is wrong with the ranges, or there are fewer combinations than runs.
    """
    ranges = {key.strip(): values for key, _, values in (text.partition("=") for text in given) if ".." in values}
    try:
        found = axes([text.replace("..", ",") if ".." in text.partition("=")[2] else text for text in given])
    except ConfigError as error:
        raise ConfigError(str(error).replace("--grid", "--random")) from None
    problems = [told for axis in found if axis.key in ranges and (told := _problem(axis, ranges[axis.key]))]
    if problems:
        raise ConfigError("\n".join(["--random:", *problems]))
    draws, made = random.Random(seed), dict[tuple[str, ...], None]()
    for _ in range(count * _TRIES):
        if len(made) == count:
            break
        made[tuple(_drawn(axis, axis.key in ranges, draws) for axis in found)] = None
    if len(made) < count:
        raise ConfigError(f"--count {count}: only {len(made)} combinations were found; nearest: --count {len(made)}")
    keys = [axis.key for axis in found]
    return named([dict(zip(keys, values, strict=True)) for values in made])


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
    problems, runs = list[str](), list[dict[str, str]]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        settings = {key.strip(): value for key, equals, value in (word.partition("=") for word in words) if equals}
        wrong = [f"{word!r} is not of the form key=value" for word in words if "=" not in word]
        wrong += [told for key in settings if (told := problem_of_key(key)) is not None]
        problems += [f"line {number}: {told}" for told in wrong]
        if settings and settings in runs:
            problems.append(f"line {number}: the same run as line {runs.index(settings) + 1} of those before")
        elif settings:
            runs.append(settings)
    if not runs and not problems:
        problems.append("no run; a line of it is for example: optimizer.learning_rate=0.001 model.width=512")
    if problems:
        raise ConfigError("\n".join([f"--list {path}:", *problems]))
    return named(runs)


def _problem(axis: Axis, text: str) -> str | None:
    try:
        low, high = (float(value) for value in axis.values)
    except ValueError:
        return f"{axis.key}={text} is not a range; example: {axis.key}=0.0001..0.01"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"{axis.key}={text}: the first end must be below the second"
    return None


def _drawn(axis: Axis, is_range: bool, draws: random.Random) -> str:
    if not is_range:
        return draws.choice(axis.values)
    low, high = (float(value) for value in axis.values)
    by_logarithm = low > 0 and high / low >= _LOG_FROM
    value = math.exp(draws.uniform(math.log(low), math.log(high))) if by_logarithm else draws.uniform(low, high)
    if all(text.lstrip("+-").isdigit() for text in axis.values):
        return str(round(value))
    return f"{min(max(float(f'{value:.{_DIGITS}g}'), low), high):.12g}"
