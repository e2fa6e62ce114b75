"""Parts of remote files that the processes of a node share, so that each part is fetched once per node.

DIR/users             locked (shared) by every process that uses the cache; the last one removes what is there
DIR/DIGEST/N          block N of the file with that digest
DIR/DIGEST/N.lock     held by the process that fetches the block; others wait for it

Processes coordinate through file locks alone, which a killed process releases.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from brt_dist.checkpoint.ranges import LocalFile, RangeReader
from brt_dist.errors import PlatformError
from brt_dist.files import temporary_name

_BLOCK = 16 << 20  # bytes fetched at once
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NodeCache:
    """This process's access to the cache of its user on this node.

    Args:
        folder: on a local disk; None: in the temporary directory.

    Raises:
        PlatformError: the folder belongs to somebody else.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"brt-checkpoints-{os.getuid()}"
        self._users: int | None = None

    def reader(self, remote: RangeReader, digest: str) -> RangeReader:
        """Reads `remote` through the cache.

        Args:
            remote: the file; closed with the reader.
            digest: of its content.
        """
        self._enter()
        folder = self._folder / digest
        folder.mkdir(exist_ok=True)
        return _CachedFile(remote, folder)

    def close(self) -> None:
        """Leave; the last process removes all blocks."""
        if self._users is not None:
            self._sweep(self._users)
            os.close(self._users)
            self._users = None

    def _enter(self) -> None:
        if self._users is not None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise PlatformError(f"{self._folder} belongs to another user; set TMPDIR to a folder of your own")
        self._users = os.open(self._folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        self._sweep(self._users)  # leftovers of killed processes
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def _sweep(self, users: int) -> None:
        """Remove all blocks, if no other process uses them."""
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in self._folder.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)


class _CachedFile(RangeReader):
    def __init__(self, remote: RangeReader, folder: Path) -> None:
        self._remote, self._folder = remote, folder
        self._size = remote.size

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, begin: int, buffer: memoryview) -> None:
        while len(buffer):
            number, offset = divmod(begin, _BLOCK)
            part = buffer[: _BLOCK - offset]
            self._read_block(number, offset, part)
            begin, buffer = begin + len(part), buffer[len(part) :]

    def close(self) -> None:
        self._remote.close()

    def _read_block(self, number: int, offset: int, buffer: memoryview) -> None:
        path = self._folder / str(number)
        if not path.exists():
            try:
                self._fetch(number, path)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._remote.read_into(number * _BLOCK + offset, buffer)
                return
        block = LocalFile(path)
        try:
            block.read_into(offset, buffer)
        finally:
            block.close()

    def _fetch(self, number: int, path: Path) -> None:
        from filelock import FileLock

        with FileLock(f"{path}.lock"):
            if path.exists():
                return
            begin = number * _BLOCK
            content = self._remote.read(begin, max(min(_BLOCK, self._size - begin), 0))
            part = temporary_name(path)
            try:
                part.write_bytes(content)
                part.rename(path)
            except OSError:
                part.unlink(missing_ok=True)
                raise
