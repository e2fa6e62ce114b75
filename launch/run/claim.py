"""The lock of a run directory: its launcher holds it, and readers ask whether it is held."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from brt_dist.errors import PlatformError
from brt_dist.run_directory import RunDirectory

Launcher = Literal["runs", "gone", "unknown"]


@contextmanager
def claimed(run: Path, holds: str = "config.yaml", command: str = "brt train") -> Iterator[bool]:
    """Hold the run directory for this process until it ends, in whatever way.

    Args:
        run: the folder, created if needed.
        holds: the file that shows that it already is a run.
        command: the command that uses such folders, for messages.

    Yields:
        Whether it already is a run.

    Raises:
        PlatformError: it cannot be written, another process holds it, or it holds something else.
    """
    from filelock import FileLock, Timeout

    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(RunDirectory(run).lock, timeout=0)
        held = lock.acquire()
    except Timeout:
        raise PlatformError(
            f"run directory {run} is in use by another `{command}`; wait for it or set another run.directory"
        ) from None
    except OSError as error:
        raise PlatformError(f"run directory {run}: {error.strerror}; set run.directory to a writable place") from None
    with held:
        known = (run / holds).is_file()
        others = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith("."))
        if others and not known:
            raise PlatformError(
                f"run directory {run} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) "
                f"and no run; nearest: run.directory={run / 'run'}"
            )
        yield known


def launcher_of(run: Path, host: str | None) -> Launcher:
    """Whether the launcher of an attempt whose record has no end still runs.

    Args:
        run: the run directory.
        host: where the launcher was started.

    Returns:
        `unknown` if it was started on another machine, whose locks are not visible here, or not by `brt train`.
    """
    if host != socket.gethostname():
        return "unknown"
    return "runs" if is_claimed(run) else "gone"


def is_claimed(run: Path) -> bool:
    """Whether a process of this machine holds the run.  Does not try the lock, which could keep a launcher out."""
    try:
        status = os.stat(RunDirectory(run).lock)
        held = Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() and "->" not in line for line in held.splitlines())
