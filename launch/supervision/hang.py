"""Hang detection, from the heartbeat file that rank 0 writes to the folder of its attempt."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.reading import read_json
from brt_dist.run_directory import AttemptDirectory
from launch.views.progress import duration


class HangWatch:
    """Detects that an attempt hangs.  Uses its own clock, since the clocks of the ranks may differ.

    Args:
        quiet: seconds without a step that never count as a hang.
        factor: a step that takes this many times as long as usual counts as a hang.
        slow: seconds allowed outside of steps: startup, an evaluation, a blocking save.
    """

    def __init__(self, quiet: float, factor: float, slow: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._factor, self._slow, self._clock = quiet, factor, slow, clock
        self._seen: dict[str, Any] = {}
        self._since = clock()

    @staticmethod
    def of(config: Config) -> "HangWatch":
        recovery = config.launch.recovery
        quiet = recovery.hang_seconds
        if any(isinstance(place, str) for place, _ in config.data.training):
            # The readers decide how long to retry an unavailable store, and raise when they give up.
            quiet = max(quiet, config.data.cache.retry_seconds + 60.0)
        return HangWatch(quiet, recovery.hang_factor, recovery.slow_seconds)

    def look(self, folder: Path) -> str | None:
        """Why the attempt in `folder` counts as hung; None if it does not."""
        found = _read(AttemptDirectory(folder).heartbeat)
        now = self._clock()
        if found and found != self._seen:
            self._seen, self._since = found, now
        phase, usual = self._seen.get("phase", "starting"), self._seen.get("step_seconds")
        quiet = now - self._since
        if phase == "training" and usual is not None:
            if quiet > max(self._quiet, self._factor * usual):
                return f"no step for {duration(quiet)}; a step usually takes {usual:.3g} s"
        elif quiet > max(self._slow, self._quiet):
            return f"{phase} for {duration(quiet)} (launch.recovery.slow_seconds)"
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
