"""Whether the head of the Ray cluster still answers.

Ray kills a driver that has not reached the head for a minute.  Ranks and agents do not need the head, so they have
time to save before that.
"""

import socket
import time
from collections.abc import Callable

_EVERY_SECONDS = 2.0
_FAILURES = 4  # in a row


class HeadWatch:
    """Detects that the head is gone.

    Args:
        address: HOST:PORT of its server.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._clock = clock
        self._next = clock() + _EVERY_SECONDS
        self._failures = 0

    def is_gone(self) -> bool:
        """Whether several connections in a row failed.  Takes at most a second, and usually no time."""
        if self._clock() >= self._next:
            self._failures = 0 if self._answers() else self._failures + 1
            self._next = self._clock() + _EVERY_SECONDS
        return self._failures >= _FAILURES

    def _answers(self) -> bool:
        try:
            with socket.create_connection(self._place, timeout=1.0):
                return True
        except OSError:
            return False
