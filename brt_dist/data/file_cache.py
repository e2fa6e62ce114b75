"""A folder on a node that holds files of remote datasets: verified, within a budget, shared by all processes.

DIR/SHA256            a whole, verified file, named by its content; so any number of datasets can share the folder
DIR/.SHA256.part      a file that is being fetched; already as large as it will be, which reserves its room
DIR/locks/SHA256      held (flock) by the process that fetches the file: the others wait for it
DIR/locks/budget      held while room is made

Everything is said with file locks, so it holds between processes that know nothing of each other, and ends with a
process that is killed.  A reader holds a shared lock on the file, which keeps it from being evicted.  A file is
hashed when it arrives and again when a process first opens it; a reader that finds it gone fetches it again.
"""

import errno
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from brt_dist.errors import BrtError, DataError, PlatformError

_CHUNK = 8 << 20  # bytes of one request
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 15.0  # seconds between tries, doubled each time
_LOOK = 0.05  # seconds between looks at a lock
_NAME = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.part")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


@dataclass(frozen=True)
class CacheSettings:
    """directory: on a disk of the node.  budget: bytes.  retry_seconds: without any progress, before giving up."""

    directory: Path
    budget: int
    retry_seconds: float = 600.0


@dataclass(frozen=True)
class RemoteFile:
    """A file by its URL, and what it must be.  bytes: none where dataset.json does not say."""

    url: str
    sha256: str
    bytes: int | None = None


class NoRoomError(BrtError):
    """Within the budget, and without what is being read or wanted sooner, there is no room now."""


class ClosedError(BrtError):
    """The cache was closed while somebody waited."""


class FileCache:
    """One process's way to the folder; may be shared by its threads.

    report: told what went wrong and was made good.  DataError: a file that is missing or altered, or larger than the
    budget.  PlatformError: a server that does not answer, a folder that cannot be written, a disk that is full.
    """

    def __init__(self, settings: CacheSettings, report: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.fetched_bytes = 0
        self._report = report
        self._verified: dict[str, tuple[int, ...]] = {}
        self._closed = threading.Event()

    def close(self) -> None:
        """Let nobody wait any longer; what is on disk stays."""
        self._closed.set()

    @contextmanager
    def reading(self, file: RemoteFile) -> Iterator[int]:
        """A descriptor of the whole, verified file; as long as the block runs it is not evicted."""
        descriptor = self.open(file)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, file: RemoteFile) -> int:
        """The same for longer: the caller closes it.  Fetches the file if it is not there."""
        found = self._open_present(file)
        return found if found is not None else self._fetch(file, None)

    def fetch_ahead(self, file: RemoteFile, keep: Collection[str]) -> bool:
        """Have the file, without evicting those with a sha256 in `keep`; whether it had to be fetched.

        NoRoomError: not without evicting one of them.
        """
        if self.path(file).is_file():
            return False
        os.close(self._fetch(file, keep))
        return True

    def path(self, file: RemoteFile) -> Path:
        """Where the file is once it is there."""
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
                    self._report(f"{path}: damaged on disk; {file.url} is fetched again")
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
                    self._report(f"{file.url}: arrived altered (sha256 differs), fetched once more")
        raise DataError(
            f"{file.url}: altered: its sha256 is not {file.sha256[:12]}..., as dataset.json says; nothing of it was "
            "used. Put the right file there, or build the dataset again"
        )

    def _download(self, file: RemoteFile, keep: Collection[str] | None) -> int | None:
        """Fetch into the folder; a descriptor with a shared lock, or none if the content is not what it must be."""
        remote, path = file_system(file.url)
        size = int(self.persistently(file.url, lambda: remote.info(path)["size"]))
        if file.bytes is not None and size != file.bytes:
            raise DataError(f"{file.url}: {size} bytes, dataset.json says {file.bytes}: altered; build it again")
        descriptor, part = self._reserve(file, size, keep)
        try:
            sha256, position = hashlib.sha256(), 0
            while position < size:
                begin, end = position, min(position + _CHUNK, size)
                chunk = self.persistently(file.url, lambda b=begin, e=end: _some(remote.cat_file(path, start=b, end=e)))  # type: ignore[misc]
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
        except FileNotFoundError:  # the folder was removed under way: the content is still ours to read
            self._report(f"{self.settings.directory}: was removed while {file.url} was fetched")
            return
        status = os.fstat(descriptor)
        self._verified[file.sha256] = (status.st_ino, status.st_size, status.st_mtime_ns)
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def persistently(self, url: str, ask: Callable[[], T]) -> T:
        """Ask until there is an answer; gives up after `retry_seconds`, or at once where asking again cannot help."""
        began, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                return ask()
            except FileNotFoundError:
                raise DataError(f"{url}: missing; dataset.json lists it") from None
            except PermissionError as error:
                raise PlatformError(f"{url}: access denied ({_first_line(error)})") from None
            except Exception as error:  # each kind of storage has its own
                waited = time.monotonic() - began
                if waited + wait > self.settings.retry_seconds:
                    raise PlatformError(
                        f"{url}: could not be fetched, tried for {waited:.0f} s "
                        f"(data.cache.retry_seconds={self.settings.retry_seconds:g}); the last answer: "
                        f"{_first_line(error)}"
                    ) from None
                if wait == _FIRST_WAIT:
                    self._report(f"{url}: {_first_line(error)}; trying again")
            self._wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    # ---- room -----------------------------------------------------------------------------------------------

    def _reserve(self, file: RemoteFile, size: int, keep: Collection[str] | None) -> tuple[int, Path]:
        """A file of `size` bytes with an exclusive lock, within the budget."""
        budget = self.settings.budget
        if size > budget:
            raise DataError(
                f"{file.url}: {size} bytes are more than the whole cache may hold (data.cache.budget_gb="
                f"{budget / 1e9:g}); nearest: data.cache.budget_gb={-(-size // 10**8) / 10:g}"
            )
        part = self.settings.directory / f".{file.sha256}.part"
        deadline = time.monotonic() + self.settings.retry_seconds
        while True:
            with self._held("budget"):
                room, disk_full = self._make_room(size, keep or ()), False
                while room:
                    try:
                        return self._allocate(part, size), part
                    except FileNotFoundError:  # the folder was removed under way
                        continue
                    except OSError as error:
                        if error.errno not in _NO_ROOM:
                            raise self._trouble(error) from None
                        disk_full = True
                        room = self._evict(keep or ())
            if keep is not None:
                raise NoRoomError(f"no room for {file.url}")
            if disk_full:
                raise PlatformError(
                    f"{self.settings.directory}: no space left for {size} bytes of {file.url}, though nothing else is "
                    "in the cache that could go; free some, or set data.cache.directory to another disk"
                )
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"{self.settings.directory}: for {self.settings.retry_seconds:g} s everything in it was being read "
                    f"and {file.url} did not fit beside it; set a larger data.cache.budget_gb"
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

    def _make_room(self, size: int, keep: Collection[str]) -> bool:
        while sum(used for _, used, _ in self._files()) + size > self.settings.budget:
            if not self._evict(keep):
                return False
        return True

    def _evict(self, keep: Collection[str]) -> bool:
        """Remove the file whose last use is longest ago, of those that nobody reads; false: there is none."""
        for _, _, path in sorted(self._files()):
            if path.name in keep:
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                return True
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
        return False

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of the last use, bytes, path) of all that takes room."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.settings.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name):
                        status = entry.stat()
                        found.append((status.st_atime_ns, status.st_size, Path(entry.path)))
        return found

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
            f"the cache {self.settings.directory} cannot be written: {error.strerror or error}; "
            "set data.cache.directory to a writable place with room"
        )


def default_directory() -> Path:
    """The cache of this user on this node."""
    return Path(tempfile.gettempdir()) / f"brt-cache-{os.getuid()}"


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.  PlatformError: its package is not installed."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith("s3://"):  # the defaults wait a minute for a server that hangs
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise PlatformError(f"{url}: {_first_line(error)}") from None
    return system, path


def _some(chunk: bytes) -> bytes:
    if not chunk:
        raise OSError("an empty answer")
    return chunk


def _write(descriptor: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
