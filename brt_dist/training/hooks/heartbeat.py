"""A sign of life of rank 0, for the supervisor: RUN/attempts/NNN/heartbeat.json.

One rank is enough, as no rank gets further than a step ahead of another.
"""

import json
import os
import statistics
import time
from collections import deque

from brt_dist.run_directory import AttemptDirectory
from brt_dist.training.hooks.base import Hook
from brt_dist.training.progress import TrainedStep

_SECONDS = 1.0  # between two writes; the storage may be far away
_STEPS = 50  # whose median is the usual time


class Heartbeat(Hook):
    """Writes what the rank does and how long a step usually takes.

    Remembers the times of the last steps, of this attempt alone, as the next may run on other machines.

    Args:
        attempt: its directory; None: writes nothing (all ranks but the first).
    """

    def __init__(self, attempt: AttemptDirectory | None) -> None:
        self._attempt = attempt
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._last: float | None = None  # beat
        self._written = 0.0
        self._count = 0
        if attempt is not None:
            attempt.path.mkdir(parents=True, exist_ok=True)
        self.slow("starting")

    def after_step(self, step: TrainedStep) -> None:
        self.beat()

    def beat(self) -> None:
        """A step is done."""
        now = time.monotonic()
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now
        self._count += 1
        # the first always: from then on the supervisor knows what is usual
        if now - self._written >= _SECONDS or self._count == 1:
            self._write("training")

    def slow(self, phase: str) -> None:
        """Something begins that may take long without a step: starting, evaluating, saving."""
        self._last = None
        self._count = 0
        self._write(phase)

    def _write(self, phase: str) -> None:
        if self._attempt is None:
            return
        self._written = time.monotonic()
        usual = statistics.median(self._steps) if self._steps else None
        path = self._attempt.heartbeat
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"phase": phase, "step_seconds": usual, "time": time.time()}))
        os.replace(new, path)  # not synced: worth nothing after a power cut
