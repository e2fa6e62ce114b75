"""What a rank does before its first step, part by part: shown while it lasts, and timed.  Imports nothing heavy."""

import json
import os
import time
from contextlib import suppress

from brt_dist.run_directory import AttemptDirectory

BEGAN = "BRT_BEGAN"  # unix seconds when the launcher began this attempt


class Starting:
    """The parts of a rank's start, one after another.

    Args:
        attempt: where to write what is done, for the launcher; None: nowhere (on all ranks but the first).
    """

    def __init__(self, attempt: AttemptDirectory | None) -> None:
        self._attempt = attempt
        self._seconds: dict[str, float] = {}
        self._part, self._since = "launcher", _began()
        self.begin("python", at=_process_began())

    def begin(self, part: str, at: float | None = None) -> None:
        """End the part before and begin another.

        Args:
            part: its name, in words.
            at: when, in unix seconds; None: now.
        """
        now = time.time() if at is None else at
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + max(now - self._since, 0.0)
        self._part, self._since = part, now
        if self._attempt is not None:
            with suppress(OSError):
                self._attempt.path.mkdir(parents=True, exist_ok=True)
                new = self._attempt.heartbeat.with_suffix(".new")
                new.write_text(json.dumps({"phase": "starting", "step_seconds": None, "time": now, "detail": part}))
                os.replace(new, self._attempt.heartbeat)

    def end(self) -> dict[str, float]:
        """Seconds of each part, in order."""
        self._seconds[self._part] = time.time() - self._since
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}


def _process_began() -> float:
    import psutil

    return float(psutil.Process().create_time())


def _began() -> float:
    """When the launcher began; without one, when this process did."""
    try:
        return float(os.environ[BEGAN])
    except (KeyError, ValueError):
        return _process_began()
