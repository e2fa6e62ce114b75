"""Ctrl-C and SIGTERM, counted instead of raised once ranks run: the first asks to save, the second ends at once."""

import math
import signal
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Context manager that takes over the signals.  `count` is how often the user asked to stop.

    Until `counting` is set a signal raises KeyboardInterrupt, as nothing runs yet that would need care.
    together: signals that come within so many seconds of each other are one request.  Ray, to stop a job, signals every
    process of it, and each passes it on.
    """

    def __init__(self, together: float = 0.0) -> None:
        self.count = 0
        self._together, self._last = together, -math.inf
        self.counting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequests":
        for number in _SIGNALS:
            self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def install(self) -> None:
        """Set the handlers (again: Ray sets its own when it starts)."""
        for number in _SIGNALS:
            if self._before[number] is not signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        last, self._last = self._last, now
        if now - last < self._together:
            return
        self.count += 1
        if not self.counting:
            raise KeyboardInterrupt
