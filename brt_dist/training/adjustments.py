"""Adjustments of a run after it diverged: steps to skip, and a lower learning rate.

The supervisor writes them to RUN/adjustments.json, and the ranks read them.  They depend on the step number alone, so
they are the same after a resume, in any layout.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from brt_dist.errors import ConfigError
from brt_dist.files import write_atomic
from brt_dist.reading import read_json
from brt_dist.run_directory import RunDirectory


@dataclass(frozen=True)
class Adjustments:
    """The adjustments of a run.

    Attributes:
        skipped: ranges of steps to skip, (first, last).
        lowered: factors for the learning rate, (first step, factor).
    """

    skipped: tuple[tuple[int, int], ...] = ()
    lowered: tuple[tuple[int, float], ...] = ()

    @classmethod
    def load(cls, run: Path) -> "Adjustments":
        """Load the adjustments of a run; empty if there are none.

        Raises:
            ConfigError: the file cannot be read.
        """
        path = RunDirectory(run).adjustments
        try:
            found = read_json(path)
            return cls(
                tuple((int(first), int(last)) for first, last in found["skipped"]),
                tuple((int(first), float(factor)) for first, factor in found["lowered"]),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ConfigError(f"cannot read {path} ({error}); remove it to resume without adjustments") from None

    def save(self, run: Path) -> None:
        write_atomic(
            RunDirectory(run).adjustments, json.dumps({"skipped": self.skipped, "lowered": self.lowered}) + "\n"
        )

    def without(self, first: int, last: int) -> "Adjustments":
        """A copy that also skips steps `first` to `last`."""
        return replace(self, skipped=(*self.skipped, (first, last)))

    def slower(self, first: int, factor: float) -> "Adjustments":
        """A copy that also multiplies the learning rate by `factor` from step `first` on."""
        return replace(self, lowered=(*self.lowered, (first, factor)))

    def skips(self, step: int) -> bool:
        """Whether `step` (from 1) is skipped."""
        return any(first <= step <= last for first, last in self.skipped)

    def rate_factor(self, step: int) -> float:
        """The factor for the learning rate of `step`."""
        return math.prod(factor for first, factor in self.lowered if step >= first)
