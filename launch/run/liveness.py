"""Whether the launcher of a run still lives: by its lock, on the machine where it runs."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Launcher = Literal["runs", "gone", "unknown"]


def launcher_of(run: Path, record: Mapping[str, Any]) -> Launcher:
    """Of an attempt that has not ended by its record (attempt.json).

    unknown: it was started on another machine, whose locks are not seen from here, or not by `brt train`.
    """
    if record.get("host") != socket.gethostname():
        return "unknown"
    return "runs" if is_claimed(run) else "gone"


def is_claimed(run: Path) -> bool:
    """Whether a process of this machine holds RUN/.lock.  Only looks: taking the lock could keep a launcher out."""
    try:
        status = os.stat(run / ".lock")
        held = Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() and "->" not in line for line in held.splitlines())
