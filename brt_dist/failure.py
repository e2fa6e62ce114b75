"""Why a rank or an attempt failed: one record, from the rank that fails to the report.

A rank that fails leaves its record in the folder of its attempt.  If it could not (it was killed, it hangs, its node is
gone), the supervisor writes the record.  The first writer wins: a record is never overwritten.
"""

import errno
import json
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brt_dist.errors import BrtError, DivergedError, ExitCode
from brt_dist.files import write_once
from brt_dist.reading import read_json

# Exceptions of torch, with text that they must contain; the first matching row of a type counts.
_TYPES = (
    ("torch", "OutOfMemoryError", "", ExitCode.OUT_OF_MEMORY),
    ("torch.distributed", "DistStoreError", "", ExitCode.HUNG),  # nobody wrote the key in time
    ("torch.distributed", "DistNetworkError", "EADDRINUSE", ExitCode.ENVIRONMENT),
    ("torch.distributed", "DistNetworkError", "", ExitCode.LOST_NODE),
    ("torch.distributed", "DistBackendError", "Watchdog caught collective operation timeout", ExitCode.HUNG),
    ("torch.distributed", "DistBackendError", "", ExitCode.LOST_NODE),
)
# What gloo, NCCL and torch say in a RuntimeError when another rank is gone or never arrived.
_SAID = (
    (ExitCode.HUNG, ("Timed out waiting", "Watchdog caught collective operation timeout", "wait timeout after")),
    (
        ExitCode.LOST_NODE,
        (
            "Connection closed by peer",
            "Connection reset by peer",
            "Connection refused",
            "Broken pipe",
            "Socket closed",
            "remote process exited or there was a network error",
            "failed to recv, got 0 bytes",
        ),
    ),
)

_LARGEST_RECORD = 16 << 20  # bytes


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for an exception: by its type or, if that is not enough, by its text."""
    if isinstance(error, BrtError):
        return error.exit_code
    if isinstance(error, MemoryError):
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.ENVIRONMENT
    said = str(error)
    for module, name, words, code in _TYPES:
        # not imported here: an exception of torch exists only where torch was imported
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(error, kind) and words in said:
            return code
    return next((code for code, texts in _SAID if any(text in said for text in texts)), ExitCode.INTERNAL)


@dataclass(frozen=True)
class Failure:
    """Why a rank failed, or all of them.

    Args:
        code: what kind of failure it is; the supervisor decides from it what to do next.
        reason: in one line; the message of an exception.
        rank: unset if the failure is not one rank's.
        host: of the rank.
        step: the one that failed; between two steps, the next; unset before training.
        time: unix seconds.
        type: name of the exception; empty if there was none.
        traceback: of an unforeseen exception; of a rank that left no record, the last lines of its log.
    """

    code: ExitCode
    reason: str
    rank: int | None = None
    host: str | None = None
    step: int | None = None
    time: float = 0.0
    type: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int, step: int | None) -> "Failure":
        """The failure of this process, now, by an exception."""
        if isinstance(error, DivergedError) and error.step is not None:
            step = error.step
        return cls(
            code=exit_code_of(error),
            reason=str(error),
            rank=rank,
            host=socket.gethostname(),
            step=step,
            time=time.time(),
            type=type(error).__name__,
            traceback="" if isinstance(error, BrtError) else "".join(traceback.format_exception(error)),
        )

    @property
    def summary(self) -> str:
        """One line for people: who failed, and how."""
        if self.rank is None or not self.type:
            return self.reason
        return f"rank {self.rank} on {self.host or '?'} failed: {self.type}: {self.reason}"

    @property
    def detail(self) -> str:
        """All that is known about the failure."""
        return (self.traceback or (self.reason if self.type else "")).rstrip()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "code": int(self.code)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Failure":
        """Back from :meth:`to_json`, and from records of version 0.1.0 (`exit_code`, `message`)."""
        return cls(
            code=exit_code(found.get("code", found.get("exit_code"))),
            reason=str(found.get("reason", found.get("message", ""))),
            rank=_whole(found.get("rank")),
            host=None if found.get("host") is None else str(found["host"]),
            step=_whole(found.get("step")),
            time=float(found.get("time", 0.0)),
            type=str(found.get("type") or ""),
            traceback=str(found.get("traceback") or ""),
        )

    def write(self, path: Path) -> bool:
        """Write the record if there is none; returns whether this one was the first."""
        return write_once(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Failure | None":
        """The record in `folder`; None if there is none, or it is damaged."""
        try:
            found = read_json(path, _LARGEST_RECORD)
            return cls.from_json(found) if isinstance(found, dict) else None
        except (OSError, ValueError, TypeError, OverflowError):
            return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def exit_code(number: Any) -> ExitCode:
    """The exit code with that number; INTERNAL for numbers that no process of ours ends with."""
    return ExitCode(number) if number in [*map(int, ExitCode)] else ExitCode.INTERNAL
