"""Checkpoints in an object store, through fsspec.  Objects appear whole or not at all, so nothing is renamed.

Files are read in ranges; ranks of one node share what they read.  Nothing locks a prefix, so use each for one run only.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from brt_dist.checkpoint.manifest import MANIFEST, sorted_names, step_of
from brt_dist.checkpoint.node_cache import NodeCache
from brt_dist.checkpoint.ranges import RangeReader
from brt_dist.checkpoint.storage import LATEST, Storage, UnreachableError
from brt_dist.errors import PlatformError
from brt_dist.files import temporary_name


class ObjectStorage(Storage):
    """A prefix, such as `s3://bucket/runs/a`.  All errors of the store's library become OSErrors.

    Args:
        url: the prefix.

    Raises:
        PlatformError: the URL is invalid, or the package for its protocol is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            # no cached listings: other processes write there too
            self._files, self._root = fsspec.url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise PlatformError(f"checkpoints at {url}: {error}") from error
        self._url = url
        self._cache = NodeCache()

    def __str__(self) -> str:
        return self._url

    def names(self) -> list[str]:
        found: set[str] = set()
        with self._asking():
            with suppress(FileNotFoundError):
                found = {Path(path).parent.name for path in self._files.glob(f"{self._root}/step_*/{MANIFEST}")}
            bucket = self._root.partition("/")[0]
            if not found and bucket and not self._files.exists(bucket):
                raise UnreachableError(f"bucket {bucket} does not exist, or these credentials cannot see it")
        return sorted_names(found)

    def latest(self) -> str | None:
        try:
            with self._asking():
                text: bytes = self._files.cat_file(f"{self._root}/{LATEST}")
        except FileNotFoundError:
            return None
        return text.decode().strip()

    def prepare(self, name: str) -> None:
        whole = set(self.names()) - {name}
        with suppress(FileNotFoundError), self._asking():
            for path in self._files.ls(self._root, detail=False):
                other = Path(path).name
                if step_of(other) is not None and other not in whole:
                    self.remove(other)

    @contextmanager
    def create(self, name: str, file: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="brt-checkpoint-") as output:
            yield output
            output.flush()
            with self._asking():
                self._files.put_file(output.name, f"{self._root}/{name}/{file}")

    def publish(self, name: str, manifest: str) -> None:
        with self._asking():
            self._files.pipe_file(f"{self._root}/{name}/{MANIFEST}", manifest.encode())
            self._files.pipe_file(f"{self._root}/{LATEST}", f"{name}\n".encode())

    def manifest(self, name: str) -> str:
        with self._asking():
            text: bytes = self._files.cat_file(f"{self._root}/{name}/{MANIFEST}")
        return text.decode()

    def size(self, name: str, file: str) -> int | None:
        try:
            with self._asking():
                size: int = self._files.size(f"{self._root}/{name}/{file}")
        except FileNotFoundError:
            return None
        return size

    def open(self, name: str, file: str, shared_as: str | None = None) -> RangeReader:
        remote = _Object(self._files, f"{self._root}/{name}/{file}", self._asking)
        return remote if shared_as is None else self._cache.reader(remote, shared_as)

    def shrink(self, name: str, manifest: str, files: Iterable[str]) -> None:
        with self._asking():
            self._files.pipe_file(f"{self._root}/{name}/{MANIFEST}", manifest.encode())
        for file in files:
            with suppress(FileNotFoundError), self._asking():
                self._files.rm_file(f"{self._root}/{name}/{file}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._asking():
            self._files.rm_file(f"{self._root}/{name}/{MANIFEST}")
        with suppress(FileNotFoundError), self._asking():
            self._files.rm(f"{self._root}/{name}", recursive=True)

    def try_out(self) -> None:
        """Write, read and remove a small object.

        Raises:
            OSError: checkpoints could not be saved or read here; its cause is the error of the store's library.
        """
        path, content = f"{self._root}/{temporary_name(Path('try')).name}", b"checkpoints can be saved here"
        with self._asking(FileNotFoundError):
            self._files.pipe_file(path, content)
            found: bytes = self._files.cat_file(path)
            self._files.rm_file(path)
        if found != content:
            raise UnreachableError(f"{self._url}: a stored object differs from what was written")

    def forget(self) -> None:
        self._cache.close()

    @contextmanager
    def _asking(self, *unexpected: type[Exception]) -> Iterator[None]:
        """Map the errors of every protocol's library to two: no such file (unless that is unexpected), and no valid
        response.
        """
        try:
            yield
        except (FileNotFoundError, UnreachableError) as error:
            if isinstance(error, unexpected):
                raise UnreachableError(f"{self._url}: {error}") from error
            raise
        except Exception as error:
            raise UnreachableError(f"{self._url}: {type(error).__name__}: {error}") from error


class _Object(RangeReader):
    """An object, read by ranged requests."""

    def __init__(self, files: Any, path: str, asking: Callable[[], AbstractContextManager[None]]) -> None:
        self._files, self._path, self._asking = files, path, asking
        with asking():
            self._size: int = files.size(path)

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, begin: int, buffer: memoryview) -> None:
        end = begin + len(buffer)
        if end > self._size:
            raise OSError(f"{self._path} ends at {self._size} bytes")
        if buffer:
            with self._asking():
                content: bytes = self._files.cat_file(self._path, start=begin, end=end)
            if len(content) != len(buffer):
                raise UnreachableError(f"{self._path}: got {len(content)} bytes, asked for {len(buffer)}")
            buffer[:] = content
