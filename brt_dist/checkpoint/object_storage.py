"""Checkpoints in an object store, through fsspec.  Objects appear whole or not at all, so nothing is renamed.

Files are read from local copies.  Nothing locks a prefix, so use each for one run only.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from brt_dist.checkpoint.manifest import MANIFEST, step_of
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
        self._copies = tempfile.TemporaryDirectory(prefix="brt-checkpoint-")

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
        return sorted(name for name in found if step_of(name) is not None)

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

    def local(self, name: str, file: str) -> Path:
        path = self._copy(name, file)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = temporary_name(path)
            with self._asking():
                self._files.get_file(f"{self._root}/{name}/{file}", str(part))
            part.rename(path)
        return path

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._asking():
            self._files.rm_file(f"{self._root}/{name}/{MANIFEST}")
        with suppress(FileNotFoundError), self._asking():
            self._files.rm(f"{self._root}/{name}", recursive=True)

    def release(self, name: str, file: str) -> None:
        self._copy(name, file).unlink(missing_ok=True)

    def forget(self) -> None:
        for folder in Path(self._copies.name).iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _copy(self, name: str, file: str) -> Path:
        return Path(self._copies.name) / name / file

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Map the errors of every protocol's library to two: no such file, and no valid response."""
        try:
            yield
        except (FileNotFoundError, UnreachableError):
            raise
        except Exception as error:
            raise UnreachableError(f"{self._url}: {type(error).__name__}: {error}") from error
