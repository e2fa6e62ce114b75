"""Compares checkpoints with their manifests.  Does not need torch; no allocation depends on a file's content."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from brt_dist.checkpoint.manifest import MANIFEST, MANIFEST_LIMIT, FileEntry, Manifest, folder_name, step_of
from brt_dist.checkpoint.storage import Storage, UnreachableError
from brt_dist.checkpoint.tensor_header import read_header
from brt_dist.errors import CheckpointError


def read_manifest(storage: Storage, name: str) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
        UnreachableError: the storage does not respond.
    """
    where = f"{storage}/{name}"
    try:
        size = storage.size(name, MANIFEST)
        if size is not None and size > MANIFEST_LIMIT:
            raise CheckpointError(f"{where}: {MANIFEST} is too large ({size} bytes; the limit is {MANIFEST_LIMIT})")
        text = storage.manifest(name)
    except UnreachableError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: cannot read its manifest ({error})") from error
    manifest = Manifest.parse(text, where)
    if step_of(name) not in (None, manifest.step):
        right = folder_name(manifest.step)
        raise CheckpointError(f"{where} holds the checkpoint of step {manifest.step}; rename the folder to {right}")
    return manifest


def size_problem(storage: Storage, name: str, entry: FileEntry) -> str | None:
    """Whether a file is missing or has the wrong size, in words; None if neither.  Does not read it."""
    where = f"{storage}/{name}/{entry.name}"
    size = storage.size(name, entry.name)
    if size is None:
        return f"{where} is missing"
    return None if size == entry.bytes else f"{where} has {size} bytes, but the manifest says {entry.bytes}"


def verify_file(storage: Storage, name: str, manifest: Manifest, entry: FileEntry) -> None:
    """Compare a file with the manifest: existence, size, content, and the tensors in it.

    Raises:
        CheckpointError: it does not match.
    """
    problem = size_problem(storage, name, entry)
    if problem:
        raise CheckpointError(problem)
    where = f"{storage}/{name}/{entry.name}"
    file = storage.open(name, entry.name)
    try:
        if file.sha256() != entry.sha256:
            raise CheckpointError(f"{where} was altered: its sha256 does not match the manifest")
        tensors = read_header(file, where)
    finally:
        file.close()
    kind = entry.name.partition("/")[0]
    found = {f"{kind}/{tensor}": (placed.dtype, placed.shape) for tensor, placed in tensors.items()}
    listed = {
        tensor: (described.dtype, described.shape)
        for tensor, described in manifest.tensors.items()
        if described.file == entry.name
    }
    if found != listed:
        raise CheckpointError(f"{where} does not contain the tensors that the manifest lists")


def verify_files(
    storage: Storage, name: str, manifest: Manifest, done: Callable[[FileEntry], None], threads: int | None = None
) -> list[str]:
    """Verify all files of a checkpoint, several at once.

    Args:
        storage: where the checkpoint is.
        name: of the checkpoint.
        manifest: of the checkpoint.
        done: called with each verified file, from any thread.
        threads: files verified at once; None: as many as there are cores, at most 8.

    Returns:
        The problems found, in the order of the files.

    Raises:
        UnreachableError: the storage does not respond.
    """

    def look(entry: FileEntry) -> str | None:
        try:
            verify_file(storage, name, manifest, entry)
        except UnreachableError:
            raise
        except (CheckpointError, OSError) as error:
            return str(error)
        finally:
            done(entry)
        return None

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        return [problem for problem in pool.map(look, manifest.files) if problem]


def newest_whole(storage: Storage, names: Sequence[str]) -> str | None:
    """The newest of `names` whose files match its manifest; None if there is none."""
    for name in reversed(names):
        try:
            if not verify_files(storage, name, read_manifest(storage, name), lambda entry: None):
                return name
        except CheckpointError:
            continue
    return None
