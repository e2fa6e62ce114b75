"""Is a checkpoint what its manifest says?  Needs no torch, and allocates nothing that a file asks for."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brt_dist.checkpoint.manifest import MANIFEST, MANIFEST_LIMIT, FileEntry, Manifest
from brt_dist.checkpoint.storage import Storage, UnreachableError
from brt_dist.errors import CheckpointError


def read_manifest(storage: Storage, name: str) -> Manifest:
    """CheckpointError: there is none, or it is damaged or of another format.  UnreachableError: no answer."""
    where = f"{storage}/{name}"
    try:
        size = storage.size(name, MANIFEST)
        if size is not None and size > MANIFEST_LIMIT:
            raise CheckpointError(f"{where}: {MANIFEST} of {size} bytes is none: at most {MANIFEST_LIMIT} are read")
        text = storage.manifest(name)
    except UnreachableError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: no readable manifest ({error})") from error
    return Manifest.parse(text, where)


def size_problem(storage: Storage, name: str, entry: FileEntry) -> str | None:
    """What is wrong with a file at first sight: missing, or of another size.  Does not read it."""
    where = f"{storage}/{name}/{entry.name}"
    size = storage.size(name, entry.name)
    if size is None:
        return f"{where} is missing"
    return None if size == entry.bytes else f"{where} has {size} bytes, the manifest says {entry.bytes}"


def verify_file(storage: Storage, name: str, manifest: Manifest, entry: FileEntry) -> None:
    """Compare a file with the manifest: there, size, content, and which tensors it holds.

    Raises:
        CheckpointError: it is not as it should be.
    """
    problem = size_problem(storage, name, entry)
    if problem:
        raise CheckpointError(problem)
    where = f"{storage}/{name}/{entry.name}"
    path = storage.local(name, entry.name)
    if sha256_of(path) != entry.sha256:
        raise CheckpointError(f"{where} was altered: its sha256 is not the one in the manifest")
    kind = entry.name.partition("/")[0]
    found = {f"{kind}/{tensor}": described for tensor, described in tensors_in(path).items()}
    listed = {
        tensor: (described.dtype, described.shape)
        for tensor, described in manifest.tensors.items()
        if described.file == entry.name
    }
    if found != listed:
        raise CheckpointError(f"{where} holds other tensors than the manifest lists")


def verify_files(
    storage: Storage, name: str, manifest: Manifest, done: Callable[[FileEntry], None], threads: int | None = None
) -> list[str]:
    """Verify all files of a checkpoint, several at once; returns what is wrong, in the order of the files.

    Args:
        done: told of each file that was looked at, from any thread.
        threads: files at once; none: as many as there are cores, at most 8.

    Raises:
        UnreachableError: the storage does not answer.
    """

    def look(entry: FileEntry) -> str | None:
        try:
            verify_file(storage, name, manifest, entry)
        except UnreachableError:
            raise
        except (CheckpointError, OSError) as error:
            return str(error)
        finally:
            storage.release(name, entry.name)
            done(entry)
        return None

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        return [problem for problem in pool.map(look, manifest.files) if problem]


def newest_whole(storage: Storage, names: Sequence[str]) -> str | None:
    """The newest of `names` whose files agree with its manifest."""
    for name in reversed(names):
        try:
            if not verify_files(storage, name, read_manifest(storage, name), lambda entry: None):
                return name
        except CheckpointError:
            continue
    return None


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names in a tensor file, with type and shape, from its header.  CheckpointError: it is no tensor file.

    The library compares shapes, offsets and the size of the file before it gives anything out.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable tensor file ({error})") from error


def sha256_of(path: Path) -> str:
    """Of the content of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
