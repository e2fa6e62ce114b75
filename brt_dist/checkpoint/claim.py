"""Keeps two runs from saving to the same folder.

The kernel releases a lock (flock) when its holder dies, whatever the cause.  Some file systems have no locks; there a
file with the holder's host and process takes its place, and the holder touches it as long as it lives.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from brt_dist.errors import PlatformError
from brt_dist.files import temporary_name
from brt_dist.reading import parse_json

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_HELD = (errno.EAGAIN, errno.EACCES)
BEAT_SECONDS = 10.0  # between two touches of the file
PATIENCE = 6  # a holder on another host that misses this many touches is taken for dead


@contextmanager
def claimed(folder: Path, report: Callable[[str], None], beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Context manager: hold `folder`, which exists, against other runs.

    Args:
        folder: to hold.
        report: called with a message if the file system has no locks.
        beat_seconds: between two signs of life where there are no locks.

    Raises:
        PlatformError: another run holds it, or it cannot be locked.
    """
    path = folder / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PlatformError(f"cannot lock {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise _is_held(folder) from None
            if error.errno not in _NO_LOCKS:
                raise PlatformError(f"cannot lock {folder}: {error.strerror}") from error
            report(
                f"the file system of {folder} has no locks ({errno.errorcode[error.errno]}); "
                f"{folder / '.owner'} keeps other runs out instead"
            )
            with _owned(folder, beat_seconds):
                yield
        else:
            yield
    finally:
        os.close(descriptor)


@contextmanager
def _owned(folder: Path, beat_seconds: float) -> Iterator[None]:
    path = folder / ".owner"
    mine = json.dumps({"host": socket.gethostname(), **_process(os.getpid())})
    try:
        while not _create(path, mine):
            _remove_if_dead(folder, path, beat_seconds)
    except OSError as error:
        raise PlatformError(f"cannot lock {folder}: {error.strerror}") from error
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(beat_seconds):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, name="claim", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    """Create the file atomically if there is none; returns whether this call did."""
    draft = temporary_name(path)
    try:
        draft.write_text(text)
        os.link(draft, path)  # fails if the file exists; a file opened exclusively would be empty for a moment
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (*_NO_LOCKS, errno.EPERM):
            raise
        try:  # no links either
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with open(descriptor, "w") as file:
            file.write(text)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _remove_if_dead(folder: Path, path: Path, beat_seconds: float) -> None:
    """Remove the file of a holder that is dead.

    Raises:
        PlatformError: the holder lives.
    """
    try:
        before, text = path.stat().st_mtime_ns, path.read_text(errors="replace")
    except FileNotFoundError:
        return  # just released
    try:
        owner = parse_json(text)
        host, pid, started = str(owner["host"]), int(owner["pid"]), owner["started"]
    except (ValueError, KeyError, TypeError):
        host, pid, started = "", 0, None  # half written, by a process that died or is about to write the rest
    if host == socket.gethostname():
        if _process(pid)["started"] == started:
            raise _is_held(folder, f" (process {pid} on {host})")
    else:
        for _ in range(PATIENCE):
            time.sleep(beat_seconds)
            try:
                if path.stat().st_mtime_ns != before:
                    raise _is_held(folder, f" (process {pid} on {host})")
            except FileNotFoundError:
                return
    _take_away(path, text)


def _take_away(path: Path, text: str) -> None:
    """Remove the file of a dead holder, but not the new file of a process that did the same a moment ago."""
    aside = temporary_name(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_text(errors="replace") != text:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _process(pid: int) -> dict[str, Any]:
    """A process and when it started, because ids are reused; `started` is None if there is no such process."""
    import psutil

    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except (psutil.Error, ValueError):
        return {"pid": pid, "started": None}


def _is_held(folder: Path, by: str = "") -> PlatformError:
    return PlatformError(
        f"another run is saving its checkpoints to {folder}{by}; stop it, or use another run.directory"
    )
