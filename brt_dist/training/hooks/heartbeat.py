"""Heartbeat of rank 0 for the supervisor: RUN/attempts/NNN/heartbeat.json.

One rank is enough, because no rank gets more than a step ahead of another.
"""

import json
import os
import statistics
import time
from collections import deque

from brt_dist.run_directory import AttemptDirectory
from brt_dist.training.hooks.base import Hook
from brt_dist.training.trainer_state import TrainedStep

_SECONDS = 1.0  # between two writes; the storage may be far away
_STEPS = 50  # the usual step time is their median


class Heartbeat(Hook):
    """Writes what the rank is doing and how long a step usually takes.

    Keeps the times of the last steps of this attempt; the next attempt may run on other nodes.

    Args:
        attempt: the directory of the attempt; None: write nothing (on all ranks but the first).
    """

    def __init__(self, attempt: AttemptDirectory | None) -> None:
        self._attempt = attempt
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._last: float | None = None  # beat
        self._written = 0.0
        self._count = 0
        self._phase = ("starting", time.time())  # and since when
        if attempt is not None:
            attempt.path.mkdir(parents=True, exist_ok=True)
        self.slow("starting")

    def after_step(self, step: TrainedStep) -> None:
        self.beat()

    def beat(self) -> None:
        """Record that a step is done."""
        now = time.monotonic()
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now
        self._count += 1
        # always write the first, which tells the supervisor that training has started
        if now - self._written >= _SECONDS or self._count == 1:
            self._write("training")

    def slow(self, phase: str) -> None:
        """Record the start of something that may take long without a step: starting, evaluating, saving."""
        self._last = None
        self._count = 0
        self._phase = (phase, time.time())
        self._write(phase)

    def part(self, detail: str) -> None:
        """Record the progress of that, in a few words; seldom written."""
        if time.monotonic() - self._written >= _SECONDS:
            self._write(self._phase[0], detail)

    def _write(self, phase: str, detail: str = "") -> None:
        if self._attempt is None:
            return
        self._written = time.monotonic()
        usual = statistics.median(self._steps) if self._steps else None
        path = self._attempt.heartbeat
        new = path.with_suffix(".new")
        began = self._phase[1] if phase == self._phase[0] else time.time()
        new.write_text(json.dumps({"phase": phase, "step_seconds": usual, "time": began, "detail": detail}))
        os.replace(new, path)  # not synced: worthless after a power cut
