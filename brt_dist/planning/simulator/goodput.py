"""The share of a run's time that trains, where failures throw it back to the last checkpoint.

A failure of any GPU ends the attempt; then all ranks start again and load.  Between failures the run trains, stops
for a save every `interval` seconds of training, and continues while the copy is written.  A failure costs the restart
and what was trained since the newest complete save.
"""

import math
from dataclasses import dataclass
from typing import Any

_SAMPLES = 100_000
_SEARCH = (0.25, 4.0)  # times the interval of Daly
_STEPS = 81


@dataclass(frozen=True)
class Saving:
    """What checkpoints and restarts cost, in seconds.

    Attributes:
        stall: how long training stops at a save.
        write: from the end of the stall until the checkpoint is complete, while training continues.
        restart: from a failure until training continues: to notice, to start processes, to load.
    """

    stall: float
    write: float = 0.0
    restart: float = 0.0


@dataclass(frozen=True)
class Goodput:
    """Shares of the time of a run; they add up to 1.

    Attributes:
        trained: new training: the goodput.
        saving: stalls of saves that counted.
        lost: training, and stalls, after the last complete save before a failure: done again.
        restarting: from failures until training continued.
    """

    trained: float
    saving: float
    lost: float
    restarting: float


def simulate_run(interval: float, saving: Saving, between: float, samples: int = _SAMPLES, seed: int = 0) -> Goodput:
    """Simulate a run over many failures.

    Args:
        interval: seconds of training between saves.
        saving: what saves and restarts cost.
        between: mean seconds between failures, which are independent (exponential); infinite: none.
        samples: failures to simulate.
        seed: of the failures.

    Raises:
        ValueError: `interval` or `between` is not positive.
    """
    if not (interval > 0 and between > 0):
        raise ValueError(f"interval={interval} and between={between} must be positive")
    if math.isinf(between):
        cycle = interval + saving.stall
        return Goodput(interval / cycle, saving.stall / cycle, 0.0, 0.0)
    return shares(interval, saving, _gaps(between, samples, seed))


def shares(interval: float, saving: Saving, gaps: Any) -> Goodput:
    """Shares of the time of a run that fails after given seconds.

    Args:
        interval: seconds of training between saves.
        saving: what saves and restarts cost.
        gaps: seconds from each failure to the next, an array or a list.
    """
    import numpy

    gaps = numpy.asarray(gaps)
    up = numpy.maximum(gaps - saving.restart, 0)  # a failure during a restart starts it again
    cycle = interval + saving.stall
    saves = numpy.maximum(numpy.floor((up - saving.write) / cycle), 0)
    total, kept = float(gaps.sum()), float(saves.sum())
    trained, stalled, running = kept * interval, kept * saving.stall, float(up.sum())
    return Goodput(trained / total, stalled / total, (running - trained - stalled) / total, 1 - running / total)


def young(stall: float, between: float) -> float:
    """Seconds between saves, of J. W. Young: A first order approximation to the optimum checkpoint interval (1974).

    Args: as for `daly`.
    """
    return math.sqrt(2 * stall * between)


def daly(stall: float, between: float) -> float:
    """Seconds between saves, of J. T. Daly: A higher order estimate of the optimum checkpoint interval (2006).

    Args:
        stall: seconds of a save.
        between: mean seconds between failures.
    """
    if math.isinf(between) or stall >= 2 * between:
        return between
    part = stall / (2 * between)
    return young(stall, between) * (1 + math.sqrt(part) / 3 + part / 9) - stall


def best_interval(saving: Saving, between: float, seed: int = 0) -> float:
    """The interval with the largest simulated goodput.

    The same failures are simulated for each interval.  Near the optimum the goodput hardly changes, so the top of a
    smooth curve through it is taken, which depends less on chance than the largest value.

    Raises:
        ValueError: there is no optimum, as saves cost nothing or nothing fails.
    """
    import numpy

    if saving.stall <= 0 or math.isinf(between):
        raise ValueError("with free saves or without failures there is no best interval")
    gaps = _gaps(between, _SAMPLES, seed)
    middle = daly(saving.stall, between)
    low, high = (math.log(middle * factor) for factor in _SEARCH)
    logs = numpy.linspace(low, high, _STEPS)
    goodputs = numpy.array([shares(math.exp(log), saving, gaps).trained for log in logs])
    best = int(goodputs.argmax())
    near = slice(max(best - _STEPS // 8, 0), best + _STEPS // 8 + 1)
    curve = numpy.polynomial.Polynomial.fit(logs[near], goodputs[near], 3)
    fine = numpy.linspace(logs[near][0], logs[near][-1], 2001)
    return float(math.exp(fine[curve(fine).argmax()]))


def _gaps(between: float, samples: int, seed: int) -> Any:
    """Seconds from each failure to the next, exponential; one in each of `samples` equally likely ranges."""
    import numpy

    uniform = (numpy.arange(samples) + numpy.random.default_rng(seed).random(samples)) / samples
    return -between * numpy.log1p(-uniform)
