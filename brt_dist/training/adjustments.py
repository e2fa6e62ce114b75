"""What was changed about a run after it diverged: steps that are left out, and a lower learning rate.

Kept in RUN/adjustments.json, written by the supervisor, read by the ranks.  Both are functions of the number of the
step alone, so a run that is taken up again, on whatever layout, does the same.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from brt_dist.errors import ConfigError
from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory


@dataclass(frozen=True)
class Adjustments:
    """skipped: ranges (first, last) of steps without training.  lowered: (first step, factor of the rate since)."""

    skipped: tuple[tuple[int, int], ...] = ()
    lowered: tuple[tuple[int, float], ...] = ()

    @classmethod
    def load(cls, run: Path) -> "Adjustments":
        """Those of a run; none where nothing was adjusted.  ConfigError: the file cannot be read."""
        path = RunDirectory(run).adjustments
        try:
            found = json.loads(path.read_text())
            return cls(
                tuple((int(first), int(last)) for first, last in found["skipped"]),
                tuple((int(first), float(factor)) for first, factor in found["lowered"]),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); remove it to go on without adjustments") from None

    def save(self, run: Path) -> None:
        write_atomic(
            RunDirectory(run).adjustments, json.dumps({"skipped": self.skipped, "lowered": self.lowered}) + "\n"
        )

    def without(self, first: int, last: int) -> "Adjustments":
        """These, and steps `first` to `last` left out."""
        return replace(self, skipped=(*self.skipped, (first, last)))

    def slower(self, first: int, factor: float) -> "Adjustments":
        """These, and from step `first` on the learning rate times `factor`."""
        return replace(self, lowered=(*self.lowered, (first, factor)))

    def skips(self, step: int) -> bool:
        """Whether nothing is trained at `step` (from 1)."""
        return any(first <= step <= last for first, last in self.skipped)

    def rate_factor(self, step: int) -> float:
        """What the learning rate of `step` is multiplied with."""
        return math.prod(factor for first, factor in self.lowered if step >= first)
