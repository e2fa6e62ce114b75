"""What `brt checkpoint` reports, as plain values.  Does not need torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brt_dist.checkpoint.manifest import MANIFEST, FileEntry, Manifest, step_of
from brt_dist.checkpoint.places import Place, answering
from brt_dist.checkpoint.retention import score, to_remove
from brt_dist.checkpoint.storage import Storage
from brt_dist.checkpoint.verification import newest_whole, read_manifest, size_problem, verify_files
from brt_dist.config.loading import recorded
from brt_dist.errors import CheckpointError

KINDS = ("weights", "optimizer", "memory")


def row_of(storage: Storage, name: str) -> dict[str, Any]:
    """A row of `brt checkpoint list`; "problem" says what is wrong with the manifest or the sizes of the files.

    Raises:
        PlatformError: the storage does not respond.
    """
    row: dict[str, Any] = {"checkpoint": name, "step": step_of(name), "problem": None}
    with answering(storage):
        try:
            manifest = read_manifest(storage, name)
        except CheckpointError as error:
            return row | {"problem": str(error)}
        found = (size_problem(storage, name, entry) for entry in manifest.files)
        row["problem"] = next((problem for problem in found if problem), None)
    return row | _facts(manifest)


def describe(storage: Storage, name: str, manifest: Manifest) -> dict[str, Any]:
    """What `brt checkpoint show` prints: the manifest without the config and the digests."""
    tensors = {
        tensor: {"dtype": entry.dtype, "shape": list(entry.shape), "file": entry.file}
        for tensor, entry in manifest.tensors.items()
    }
    kinds = {
        kind: {
            "tensors": sum(tensor.startswith(f"{kind}/") for tensor in tensors),
            "bytes": sum(entry.bytes for entry in manifest.files if entry.name.startswith(f"{kind}/")),
        }
        for kind in KINDS
    }
    return {
        "checkpoint": name,
        "place": str(storage),
        "step": manifest.step,
        **_facts(manifest),
        "updates": manifest.updates,
        "tokens": manifest.tokens,
        "streams": _streams(manifest, f"{storage}/{name}"),
        "evaluations": manifest.evaluations,
        "dataset": manifest.dataset,
        "model": manifest.config.get("model", {}),
        "versions": manifest.versions,
        "kinds": kinds,
        "tensors": tensors,
    }


def verify_all(
    storage: Storage, names: Sequence[str], progress: Callable[[int, int], None], threads: int | None = None
) -> dict[str, list[str]]:
    """Verify checkpoints.

    Args:
        storage: where they are.
        names: which ones.
        progress: called with the bytes verified so far and their total, from any thread.
        threads: files verified at once, as for `verify_files`.

    Returns:
        The problems of each checkpoint; an empty list if it is complete.

    Raises:
        PlatformError: the storage does not respond.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    manifests: dict[str, Manifest] = {}
    lock, looked_at = threading.Lock(), 0
    with answering(storage):
        for name in names:
            try:
                manifests[name] = read_manifest(storage, name)
            except CheckpointError as error:
                found[name] = [str(error)]
        total = sum(manifest.total_bytes for manifest in manifests.values())

        def done(entry: FileEntry) -> None:
            nonlocal looked_at
            with lock:
                looked_at += entry.bytes
                progress(looked_at, total)

        for name, manifest in manifests.items():
            found[name] = verify_files(storage, name, manifest, done, threads)
    return found


@dataclass(frozen=True)
class Pruning:
    """Which checkpoints to remove.

    Attributes:
        remove: names of those to remove.
        keep: names of those to keep.
        damaged: what is wrong with damaged ones, which are kept too, by name.
    """

    remove: list[str]
    keep: list[str]
    damaged: dict[str, str]


def plan_pruning(place: Place, given: Mapping[str, int]) -> Pruning:
    """Decide which checkpoints of a place to remove.

    Args:
        place: where they are.
        given: retention settings (`keep_checkpoints`, ...) that replace the run's.

    Raises:
        CheckpointError: there is no checkpoint, or none is complete.
        PlatformError: the storage does not respond.
    """
    names = place.names()
    rows = {name: row_of(place.storage, name) for name in names}
    damaged = {name: str(row["problem"]) for name, row in rows.items() if row["problem"]}
    with answering(place.storage):
        whole = newest_whole(place.storage, [name for name in names if name not in damaged])
        if whole is None:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints at {place.storage} is complete; nothing was removed"
            )
        # newer ones looked complete but are not
        damaged |= {name: "its content is damaged" for name in names[names.index(whole) + 1 :] if name not in damaged}
        run = place.run or recorded(read_manifest(place.storage, whole).config, f"{place.storage}/{whole}").run
    by_step = {row["step"]: name for name, row in rows.items() if name not in damaged}
    scores = {step: rows[name]["bits_per_token"] for step, name in by_step.items()}
    steps = to_remove(scores, run.model_copy(update=dict(given)), protected=(rows[whole]["step"],))
    remove = [by_step[step] for step in steps]
    return Pruning(remove, [name for name in by_step.values() if name not in remove], damaged)


def _streams(manifest: Manifest, where: str) -> int:
    ordinal = manifest.cursor.get("ordinal", [])
    if not isinstance(ordinal, list):
        raise CheckpointError(f"{where}: {MANIFEST} has no cursor of streams; its `ordinal` is not a list")
    return len(ordinal)


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "time": manifest.time or None,
        "bytes": manifest.total_bytes,
        "bits_per_token": score(manifest.evaluations),
        "saved_by": manifest.saved_by,
    }
