"""A node's cache of files of remote datasets: verified, within a budget, shared by all processes.

DIR/SHA256            a complete, verified file, named by its content, so any number of datasets can share the folder
DIR/.SHA256.part      a file that is being fetched; allocated at full size, which reserves its space
DIR/locks/SHA256      held (flock) by the process that fetches the file; others wait for it
DIR/locks/budget      held while files are evicted

Processes coordinate through file locks alone, so they need not know each other, and a killed process releases its
locks.  A reader holds a shared lock on the file, which protects it from eviction.  A file is hashed when it arrives
and again when a process first opens it; a reader that finds it gone fetches it again.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from brt_dist.data.cache_room import CacheRoom
from brt_dist.errors import BrtError, DataError, PlatformError
from brt_dist.unreachable import unreachable

_CHUNK = 8 << 20  # bytes of one request
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 15.0  # seconds between retries, doubled each time
_LOOK = 0.05  # seconds between attempts to take a lock
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


@dataclass(frozen=True)
class CacheSettings:
    """Settings of the cache.

    Attributes:
        directory: on a local disk of the node.
        budget: largest total size, in bytes.
        retry_seconds: how long to retry without progress before giving up.
        fetch: whole shards, or single documents; auto: shards if all of them fit within the budget.
    """

    directory: Path
    budget: int
    retry_seconds: float = 600.0
    fetch: Literal["auto", "shards", "documents"] = "shards"


@dataclass(frozen=True)
class RemoteFile:
    """A remote file, or a range of one, and its expected content.

    Attributes:
        url: where it is.
        sha256: of its content.
        bytes: its size; None if dataset.json does not give it.
        begin: first byte of the range; None: the whole file.
    """

    url: str
    sha256: str
    bytes: int | None = None
    begin: int | None = None


class NoRoomError(BrtError):
    """There is no space now without evicting files that are being read or are needed sooner."""


class ClosedError(BrtError):
    """The cache was closed while a caller was waiting."""


class FileCache:
    """A process's access to the cache; threads may share it.

    Its methods raise DataError if a file is missing, altered or larger than the budget, and PlatformError if the
    server does not respond, the folder cannot be written or the disk is full.

    Args:
        settings: of the cache.
        report: called with a message about each problem that was recovered from.
    """

    def __init__(self, settings: CacheSettings, report: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.fetched_bytes = 0
        self._report = report
        self._verified: dict[str, tuple[int, ...]] = {}
        self._closed = threading.Event()
        self._room = CacheRoom(settings.directory, settings.budget)

    def close(self) -> None:
        """Wake all waiting callers with a ClosedError; the files stay on disk."""
        self._closed.set()

    @contextmanager
    def reading(self, file: RemoteFile) -> Iterator[int]:
        """Context manager: a descriptor of the verified file, which is not evicted meanwhile."""
        descriptor = self.open(file)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, file: RemoteFile) -> int:
        """A descriptor of the verified file, fetched if necessary; it is not evicted until the caller closes it."""
        found = self._open_present(file)
        return found if found is not None else self._fetch(file, None)

    def fetch_ahead(self, file: RemoteFile, keep: Collection[str]) -> bool:
        """Fetch the file if it is missing, without evicting files whose sha256 is in `keep`.

        Returns:
            Whether it was fetched.

        Raises:
            NoRoomError: that would evict one of them.
        """
        if self.path(file).is_file():
            return False
        os.close(self._fetch(file, keep))
        return True

    def path(self, file: RemoteFile) -> Path:
        """Path of the file in the cache."""
        return self.settings.directory / file.sha256

    # ---- what is there --------------------------------------------------------------------------------------

    def _open_present(self, file: RemoteFile) -> int | None:
        path = self.path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PlatformError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self._lock(descriptor, fcntl.LOCK_SH)  # waits while somebody evicts it
            status = os.fstat(descriptor)
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._verified.get(file.sha256) != signature:
                with open(descriptor, "rb", closefd=False) as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                if sha256 != file.sha256:
                    self._report(f"{path}: damaged on disk; fetching {file.url} again")
                    path.unlink(missing_ok=True)
                    os.close(descriptor)
                    return None
                self._verified[file.sha256] = signature
            with suppress(OSError):
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))  # the time of the last use
            return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise

    # ---- fetching -------------------------------------------------------------------------------------------

    def _fetch(self, file: RemoteFile, keep: Collection[str] | None) -> int:
        with self._held(file.sha256):
            found = self._open_present(file)  # another process may have fetched it meanwhile
            if found is not None:
                return found
            for attempt in (1, 2):
                descriptor = self._download(file, keep)
                if descriptor is not None:
                    return descriptor
                if attempt == 1:
                    self._report(f"{file.url}: wrong content (sha256 differs); fetching it again")
        raise DataError(
            f"{file.url}: altered: its sha256 is not {file.sha256[:12]}... as in dataset.json; none of it was "
            "used. Restore the file, or rebuild the dataset"
        )

    def _download(self, file: RemoteFile, keep: Collection[str] | None) -> int | None:
        """Fetch into the cache.  Returns a descriptor with a shared lock; None if the content is wrong."""
        remote, path = file_system(file.url)
        first = file.begin or 0
        size = file.bytes if file.begin is not None else None
        if size is None:
            size = int(self.persistently(file.url, lambda: remote.info(path)["size"]))
            if file.bytes is not None and size != file.bytes:
                raise DataError(
                    f"{file.url}: altered: {size} bytes, but dataset.json says {file.bytes}; rebuild the dataset"
                )
        descriptor, part = self._reserve(file, size, keep)
        try:
            sha256, position = hashlib.sha256(), 0
            while position < size:
                begin, end = position, min(position + _CHUNK, size)
                ask = partial(remote.cat_file, path, start=first + begin, end=first + end)
                chunk = self.persistently(file.url, partial(_some, ask))
                sha256.update(chunk[: end - begin])
                _write(descriptor, chunk[: end - begin], begin)
                position += len(chunk[: end - begin])
            self.fetched_bytes += size
            if sha256.hexdigest() != file.sha256:
                part.unlink(missing_ok=True)
                os.close(descriptor)
                return None
            self._keep(descriptor, part, file)
            return descriptor
        except BaseException as error:
            with suppress(OSError):
                os.unlink(part)
            with suppress(OSError):
                os.close(descriptor)
            if isinstance(error, OSError):
                raise self._trouble(error) from None
            raise

    def _keep(self, descriptor: int, part: Path, file: RemoteFile) -> None:
        try:
            os.rename(part, self.path(file))
        except FileNotFoundError:  # the folder was removed meanwhile; the open descriptor still works
            self._report(f"{self.settings.directory}: removed while {file.url} was being fetched")
            return
        status = os.fstat(descriptor)
        self._verified[file.sha256] = (status.st_ino, status.st_size, status.st_mtime_ns)
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def persistently(self, url: str, ask: Callable[[], T]) -> T:
        """Call `ask`, and retry errors for up to `retry_seconds`, except those that a retry cannot fix."""
        began, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                return ask()
            except PermissionError as error:
                raise PlatformError(f"{url}: access denied ({_first_line(error)})") from None
            except Exception as error:  # each kind of storage has its own
                problem = unreachable(url, error)
                if isinstance(error, FileNotFoundError) and problem is None:
                    raise DataError(f"{url}: missing; dataset.json lists it") from None
                waited, problem = time.monotonic() - began, problem or _first_line(error)
                if waited + wait > self.settings.retry_seconds:
                    raise PlatformError(
                        f"{url}: could not be fetched after retrying for {waited:.0f} s "
                        f"(data.cache.retry_seconds={self.settings.retry_seconds:g}); last error: {problem}; "
                        "nearest: a copy of the dataset on this machine"
                    ) from None
                if wait == _FIRST_WAIT:
                    self._report(f"{url}: {problem}; retrying")
            self._wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    # ---- room -----------------------------------------------------------------------------------------------

    def _reserve(self, file: RemoteFile, size: int, keep: Collection[str] | None) -> tuple[int, Path]:
        """A file of `size` bytes with an exclusive lock, within the budget."""
        budget = self.settings.budget
        if size > budget:
            raise DataError(
                f"{file.url}: {size} bytes exceed the size of the whole cache (data.cache.budget_gb="
                f"{budget / 1e9:g}); nearest: data.cache.budget_gb={-(-size // 10**8) / 10:g}"
            )
        part = self.settings.directory / f".{file.sha256}.part"
        deadline = time.monotonic() + self.settings.retry_seconds
        while True:
            with self._held("budget"):
                room, disk_full = self._room.make(size, keep or ()), False
                while room:
                    try:
                        return self._allocate(part, size), part
                    except FileNotFoundError:  # the folder was removed in the meantime
                        continue
                    except OSError as error:
                        if error.errno not in _NO_ROOM:
                            raise self._trouble(error) from None
                        disk_full = True
                        room = self._room.evict(keep or ())
            if keep is not None:
                raise NoRoomError(f"no room for {file.url}")
            if disk_full:
                raise PlatformError(
                    f"{self.settings.directory}: no space left for {size} bytes of {file.url}, and the cache has "
                    "nothing left to evict; free some space, or set data.cache.directory to another disk"
                )
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"{self.settings.directory}: no space for {file.url}, because everything else was in use for "
                    f"{self.settings.retry_seconds:g} s; increase data.cache.budget_gb"
                )
            self._wait(_LOOK)

    def _allocate(self, part: Path, size: int) -> int:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # of a process that was killed: we hold the lock of this file
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if size:
                os.posix_fallocate(descriptor, 0, size)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        return descriptor

    # ---- locks and waiting ----------------------------------------------------------------------------------

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        path = self.settings.directory / "locks" / name
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                break
            except FileNotFoundError:  # the folder was removed between the two
                self._wait(_LOOK)
            except OSError as error:
                raise self._trouble(error) from None
        try:
            self._lock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, kind: int) -> None:
        while True:
            try:
                return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                self._wait(_LOOK)

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ClosedError("the cache was closed")

    def _trouble(self, error: OSError) -> BrtError:
        return PlatformError(
            f"cannot write to the cache {self.settings.directory}: {error.strerror or error}; "
            "set data.cache.directory to a writable folder with free space"
        )


def default_directory() -> Path:
    """The default cache folder of this user on this node."""
    return Path(tempfile.gettempdir()) / f"brt-cache-{os.getuid()}"


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        PlatformError: the protocol is unknown, or its package is not installed.
    """
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith("s3://"):  # the defaults wait a minute for a server that hangs
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise PlatformError(f"{url}: {_first_line(error)}") from None
    return system, path


def _some(ask: Callable[[], bytes]) -> bytes:
    chunk = ask()
    if not chunk:
        raise OSError("empty response")
    return chunk


def _write(descriptor: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
