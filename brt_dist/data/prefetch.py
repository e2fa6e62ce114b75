"""Prefetches files of remote datasets into the node's cache.

Each reader announces the files that it will need, in order.  If the node has a cache process (`NodeCache`, which the
launcher runs as a Ray actor), the list is written to DIR/requests, and that process fetches for all readers of the
node; readers detect it by the lock that it holds.  If there is none, or it has died, the reader's own thread fetches.
"""

import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from brt_dist.data.file_cache import CacheSettings, ClosedError, FileCache, NoRoomError, RemoteFile, default_directory
from brt_dist.errors import BrtError, PlatformError
from brt_dist.files import temporary_name

_LOOK_SECONDS = 0.2  # between checks of the requests
_AT_ONCE = 8  # ranges fetched at once
_TRIES = 10  # attempts to become the node's cache process
_PAUSE_SECONDS = 1.0  # after a failure; a reader that needs the file gets the error itself


class Fetcher:
    """Threads that fetch the `wanted` files, in order: one for whole files, more for ranges, which are small.

    Args:
        cache: to fetch into.
        wanted: returns the files that are wanted now.
        look_seconds: how often to check for new ones.
    """

    def __init__(self, cache: FileCache, wanted: Callable[[], list[RemoteFile]], look_seconds: float) -> None:
        self._cache, self._wanted, self._look = cache, wanted, look_seconds
        self._wake, self._closed = threading.Event(), threading.Event()
        self.files = 0
        self._lock, self._under_way = threading.Lock(), set[str]()
        self._threads = [
            threading.Thread(target=self._work, args=(number > 0,), name="fetcher", daemon=True)
            for number in range(_AT_ONCE)
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        self._cache.close()
        for thread in self._threads:
            thread.join()

    def _work(self, only_ranges: bool) -> None:
        while not self._closed.is_set():
            try:
                fetched = self._fetch_first(only_ranges)
            except ClosedError:
                return
            except BrtError:
                self._closed.wait(_PAUSE_SECONDS)
                continue
            if not fetched:
                self._wake.wait(self._look)
                self._wake.clear()

    def _fetch_first(self, only_ranges: bool) -> bool:
        """Fetch the first wanted file that is neither in the cache nor being fetched; returns whether there was one."""
        wanted = self._wanted()
        keep = {file.sha256 for file in wanted}
        for file in wanted:
            if (only_ranges and file.begin is None) or not self._begin(file):
                continue
            try:
                if self._cache.fetch_ahead(file, keep):
                    self.files += 1
                    return True
            except NoRoomError:
                return False
            finally:
                self._under_way.discard(file.sha256)
        return False

    def _begin(self, file: RemoteFile) -> bool:
        with self._lock:
            if file.sha256 in self._under_way:
                return False
            self._under_way.add(file.sha256)
            return True


class Reader:
    """A reader's side: announces the files that it will need, and fetches them unless the cache process does."""

    _numbers = itertools.count()

    def __init__(self, cache: FileCache) -> None:
        self._cache = cache
        self._files: list[RemoteFile] = []
        self._path = cache.settings.directory / "requests" / f"{os.getpid()}-{next(self._numbers)}"
        self._fetcher: Fetcher | None = None

    def expect(self, files: list[RemoteFile]) -> None:
        """Announce the files that are needed from now on, in this order; replaces the previous list."""
        if files == self._files:
            return
        self._files = files
        if is_served(self._cache.settings.directory):
            self._write(files)
        if self._fetcher is None:
            own = FileCache(self._cache.settings)  # closed with the fetcher, not with the reader's
            self._fetcher = Fetcher(own, self._own_wants, _PAUSE_SECONDS)
        self._fetcher.wake()

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _own_wants(self) -> list[RemoteFile]:
        return [] if is_served(self._cache.settings.directory) else self._files

    def _write(self, files: list[RemoteFile]) -> None:
        draft = temporary_name(self._path)
        with suppress(OSError):  # only a hint; without it the reader waits longer
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps([[file.url, file.sha256, file.bytes, file.begin] for file in files]))
            os.replace(draft, self._path)


class NodeCache:
    """The cache process of a node, which prefetches for all readers on it.

    It does nothing if the folder already has a cache process.

    Args:
        directory: the cache folder; None: the node's default.
        budget: largest total size, in bytes.
        retry_seconds: how long to retry without progress.
        variables: environment variables that the storage needs, such as credentials.

    Raises:
        PlatformError: the folder cannot be written.
    """

    def __init__(self, directory: Path | None, budget: int, retry_seconds: float, variables: Mapping[str, str]) -> None:
        self._fetcher: Fetcher | None = None
        os.environ.update(variables)
        self._folder = directory or default_directory()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self._folder / "locks.server", "w")  # noqa: SIM115 - held for life
        except OSError as error:
            raise PlatformError(
                f"cannot write to the cache {self._folder}: {error.strerror}; set data.cache.directory"
            ) from None
        if not self._is_first():
            return
        cache = FileCache(CacheSettings(self._folder, budget, retry_seconds), lambda text: print(text, flush=True))
        self._fetcher = Fetcher(cache, self._wants, _LOOK_SECONDS)

    def describe(self) -> dict[str, int]:
        """The process id and the number of files fetched so far."""
        return {"pid": os.getpid(), "files": self._fetcher.files if self._fetcher else 0}

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.close()
            self._lock.close()

    def _is_first(self) -> bool:
        for _ in range(_TRIES):  # a reader that checks for a cache process holds the lock for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(_LOOK_SECONDS)
        return False

    def _wants(self) -> list[RemoteFile]:
        """The first request of every reader, then the second of each, ..."""
        lists: list[list[RemoteFile]] = []
        for path in sorted((self._folder / "requests").glob("[0-9]*-*")):
            if not _is_alive(int(path.name.partition("-")[0])):
                path.unlink(missing_ok=True)
                continue
            with suppress(OSError, ValueError):
                lists.append([RemoteFile(*values) for values in json.loads(path.read_text())])
        return list(dict.fromkeys(_by_turns(lists)))


def is_served(folder: Path) -> bool:
    """Whether the folder has a live cache process."""
    try:
        with open(folder / "locks.server") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _by_turns(lists: Iterable[list[RemoteFile]]) -> Iterable[RemoteFile]:
    return (file for row in itertools.zip_longest(*lists) for file in row if file is not None)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
