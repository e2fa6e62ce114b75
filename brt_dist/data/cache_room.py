"""The room in a node's cache: what takes it up, and which files are evicted for others."""

import fcntl
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.part")
_MANY = 4096  # with this many files, a little more than needed is evicted, because looking at them all takes time


class CacheRoom:
    """The room of a cache folder.  Call its methods with the lock DIR/locks/budget.

    The lock file holds an upper bound of the bytes in use, so that a cache of many small files is not scanned for each
    of them.

    Args:
        directory: of the cache.
        budget: largest total size, in bytes.
    """

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory, self._budget = directory, budget
        self._known = directory / "locks" / "budget"

    def make(self, size: int, keep: Collection[str]) -> bool:
        """Evict until `size` bytes fit within the budget; false if what may be evicted is not enough.

        Args:
            size: bytes that are about to be used.
            keep: names of files to leave.
        """
        with suppress(OSError, ValueError):
            if (bound := int(self._known.read_text()) + size) <= self._budget:
                self._known.write_text(str(bound))
                return True
        files = sorted(self._files())
        used, goal = sum(of_file for _, of_file, _ in files), self._budget - size
        if used > goal and len(files) > _MANY:
            goal -= self._budget // 100
        for _, of_file, path in files:
            if used <= goal:
                break
            if path.name not in keep and _removed(path):
                used -= of_file
        with suppress(OSError):
            self._known.write_text(str(used + size))
        return used + size <= self._budget

    def evict(self, keep: Collection[str]) -> bool:
        """Remove the least recently used file that nobody is reading; false if there is none."""
        return any(path.name not in keep and _removed(path) for _, _, path in sorted(self._files()))

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of the last use, bytes, path) of all that takes room."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name):
                        status = entry.stat()
                        found.append((status.st_atime_ns, status.st_size, Path(entry.path)))
        return found


def _removed(path: Path) -> bool:
    """Remove a file unless somebody is reading it; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
