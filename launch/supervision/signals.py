"""Ctrl-C and SIGTERM, counted once ranks run: the first asks to save and stop, the second stops at once."""

import math
import signal
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Context manager that handles the signals.

    Attributes:
        count: how often the user asked to stop.
        counting: until it is set, a signal raises KeyboardInterrupt, since nothing runs yet that needs saving.

    Args:
        together: signals within this many seconds of each other count as one request.  To stop a job, Ray signals every
            process of it, and each passes the signal on.
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
        """Set the handlers; call it again after Ray has started, which sets its own."""
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
