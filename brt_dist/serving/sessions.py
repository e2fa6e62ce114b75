"""Memories of conversations that clients come back to, by a name that they choose."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from brt_dist.errors import BrtError, ExitCode


class SessionBusyError(BrtError):
    """Another request of the session is in progress."""

    exit_code = ExitCode.USAGE


class SessionUnknownError(BrtError):
    """There is no such session, or it has expired."""

    exit_code = ExitCode.USAGE


@dataclass
class Saved:
    """The state of a session's text.

    Attributes:
        memory: as `Decoder.state` returns it.
        tokens: of the open block.
        read: tokens read in all.
        unread: tokens of the text that were not read yet.
    """

    memory: dict[str, Tensor]
    tokens: list[int]
    read: int
    unread: list[int]


class Sessions:
    """At most `limit` sessions; the least recently used one makes room.  Threads may share it.

    Args:
        limit: most sessions that are kept.
        expire_seconds: how long one is kept without being used.
        clock: monotonic, in seconds.
    """

    def __init__(self, limit: int, expire_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._expire, self._clock = limit, expire_seconds, clock
        self._kept: OrderedDict[str, tuple[float, Saved]] = OrderedDict()  # unused for longest first
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._forget_old()
            return len(self._kept)

    def begin(self, name: str, must_exist: bool) -> Saved | None:
        """Take a session for one request; `end` gives it back.

        Returns:
            What was saved; None for a new session.

        Raises:
            SessionBusyError: another request has it.
            SessionUnknownError: `must_exist`, and it does not.
        """
        with self._lock:
            self._forget_old()
            if name in self._busy:
                raise SessionBusyError(f"session {name!r} already has a request in progress; wait until it ends")
            found = self._kept.pop(name, None)
            if found is None and must_exist:
                raise SessionUnknownError(
                    f"there is no session {name!r}: it was never started, or was not used for {self._expire:g} s; "
                    "send the text so far with session_new=true"
                )
            self._busy.add(name)
            return None if found is None else found[1]

    def end(self, name: str, saved: Saved | None) -> None:
        """Give a session back with its new state; None: remove it."""
        with self._lock:
            self._busy.discard(name)
            if saved is None:
                return
            self._kept[name] = (self._clock(), saved)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def _forget_old(self) -> None:
        oldest = self._clock() - self._expire
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._kept.popitem(last=False)
