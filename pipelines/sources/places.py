"""Files and folders of sources, local or at any fsspec URL."""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from brt_dist.errors import BrtError, DataError, PlatformError
from brt_dist.unreachable import unreachable
from pipelines.sources.documents import HIDDEN, LINK_TO_FOLDER, Unit, not_read, printable

LeftOut = Callable[[str], None]


def _nobody(reason: str) -> None:
    """Default for callers that do not count what is left out."""


@contextmanager
def answering(spec: str) -> Iterator[None]:
    """Turn whatever the library of a remote place raises, when it does not answer or refuses, into a single error.

    Raises:
        PlatformError: the host that cannot be reached, or what the library says, with the place.
    """
    try:
        yield
    except BrtError:
        raise
    except Exception as error:
        if not is_remote(spec):
            raise
        if (problem := unreachable(spec, error)) is not None:
            raise PlatformError(f"{spec}: {problem}; nearest: a copy of it on this machine") from None
        hint = "; set its credentials" if "credential" in str(error).lower() else ""
        raise PlatformError(f"{spec}: cannot be read: {type(error).__name__}: {error}{hint}") from None


def walk(
    filesystem: Any, path: str, parts: tuple[str, ...], deep: bool = True, left_out: LeftOut = _nobody
) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Files under a path with the components of their place, in order.  Memory: one folder at a time.

    Args:
        filesystem, path: where.
        parts: the components of the place of `path`.
        deep: also files of folders within it.
        left_out: called with the reason for each file or folder that is left out.
    """
    info = filesystem.info(path)
    if info["type"] != "directory":
        yield info, parts
        return
    entries = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in filesystem.ls(path, detail=True)}
    for name in sorted(entries, key=os.fsencode):
        entry = entries[name]
        if entry["name"].rstrip("/") == path.rstrip("/"):
            continue
        if name.startswith("."):
            left_out(HIDDEN)
        elif entry.get("islink") and filesystem.isdir(entry["name"]):
            left_out(LINK_TO_FOLDER)
        elif entry["type"] != "directory":
            yield entry, (*parts, name)
        elif deep:
            yield from walk(filesystem, entry["name"], (*parts, name), deep, left_out)


def units_of(given: str, name: str, form: Callable[[str], str | None], left_out: LeftOut = _nobody) -> Iterator[Unit]:
    """Each file of a folder, or the file given, as one unit, in order.

    Args:
        given: path or URL.
        name: the first component of their places.
        form: the format of a file by its name, None if it is left out.
        left_out: called with the reason for each file or folder that is.
    """
    filesystem, path = filesystem_of(given)
    for info, parts in walk(filesystem, path, (name,), left_out=left_out):
        found = form(parts[-1])
        if found is None:
            left_out(not_read(parts[-1]))
        else:
            url = filesystem.unstrip_protocol(info["name"]) if is_remote(given) else info["name"]
            yield Unit(url, printable("/".join(parts)), found, 0, int(info["size"] or 0), stamp(info))


def stamp(info: dict[str, Any]) -> str:
    """What changes with the content, as far as the file system knows: size and time, or a tag."""
    known = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "generation")
    return json.dumps([str(info.get(key)) for key in known if info.get(key) is not None])


def filesystem_of(spec: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it."""
    if not is_remote(spec):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(spec)
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(spec)
    except (ImportError, ValueError) as error:
        raise DataError(f"{spec}: {error}") from None
    return filesystem, path


def is_there(filesystem: Any, path: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        Exception: the file system cannot tell; https:// says "no" whatever goes wrong, with the reason as the cause.
    """
    if filesystem.exists(path):
        return True
    try:
        filesystem.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or getattr(cause, "status", None) in (404, 410) or isinstance(cause, FileNotFoundError):
            return False
        raise cause from None
    return True


def is_remote(spec: str) -> bool:
    return "://" in spec


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    if not is_remote(url):
        with open(url, "rb") as file:
            yield file
        return
    import fsspec

    with fsspec.open(url, "rb") as remote:
        yield cast(io.BufferedReader, remote)
