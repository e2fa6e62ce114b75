"""The config in a run directory: writes it, and compares it with the config of a resumed run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brt_dist.config.changes import changes
from brt_dist.config.loading import Resolved, dump, flatten, load
from brt_dist.config.schema import Config
from brt_dist.errors import BrtError, ConfigError
from brt_dist.files import write_atomic
from brt_dist.reading import read_json
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact
from launch.run.tracking_place import settled


def absolute(config: Config) -> Config:
    """`config` with absolute folders, so that it means the same for every process, wherever it was started.

    Raises:
        ConfigError: the tracking URI can never work.
    """
    data, run = config.data, config.run
    mixture = tuple(part.model_copy(update={"dataset": _absolute(part.dataset)}) for part in data.mixture)
    folders = {"dataset": _absolute(data.dataset), "mixture": mixture, "validation": _absolute(data.validation)}
    places = {
        name: place if place is None or "://" in place else os.path.abspath(place)
        for name, place in (("checkpoints", run.checkpoints), ("init_from", run.init_from))
    }
    return config.model_copy(
        update={
            "data": data.model_copy(update=folders),
            "run": run.model_copy(
                update={
                    "directory": Path(os.path.abspath(run.directory)),
                    "tracking": settled(run.tracking),
                    **places,
                }
            ),
        }
    )


def _absolute(place: Path | str | None) -> Path | str | None:
    return Path(os.path.abspath(place)) if isinstance(place, Path) else place


def refuse_other_run(run: Path, config: Config) -> None:
    """Check that the config continues the run in `run`.

    Raises:
        ConfigError: lists every difference that would make it a different run.
    """
    before = load(RunDirectory(run).config).config
    found = changes(flatten(before), flatten(config), config.run.allow)
    if any(_names_data(change.key) for change in found) and _same_data(before, config):
        found = [change for change in found if not _names_data(change.key)]  # it has moved, or is reached by a link
    differences = [
        f"  - {change.key}: {_shown(change.before)} in the run, {_shown(change.now)} now"
        + (f" (cannot change: {change.reason})" if change.reason else "")
        for change in found
    ]
    if differences:
        raise ConfigError(
            f"run directory {run} holds a run with a different config:\n"
            + "\n".join(differences)
            + "\nrestore these values to resume it, list the keys that may differ in run.allow, or set another "
            "run.directory for a new run"
        )


def _names_data(key: str) -> bool:
    return key in ("data.dataset", "data.mixture")


def _same_data(before: Config, now: Config) -> bool:
    """Whether the training data is the run's so far, wherever it is now: the newest checkpoint knows its digest."""
    from brt_dist.checkpoint.places import find_place
    from brt_dist.checkpoint.verification import read_manifest
    from brt_dist.data.open import open_training

    try:
        place = find_place(str(before.run.directory))
        known = read_manifest(place.storage, place.names()[-1]).dataset
    except (BrtError, OSError):  # nothing is saved yet: compare the places of the data
        with open_training(before.data) as data:
            known = data.digest
    with open_training(now.data) as data:
        return data.digest == known


def write_config(run: Path, resolved: Resolved) -> None:
    """Write RUN/config.yaml and RUN/provenance.json."""
    path = RunDirectory(run).config
    text = dump(resolved.config)
    provenance = _first_origins(run, resolved.provenance)
    write_atomic(path, text)
    if redact(text) != text:  # the tracking URI contains a password, so only the owner may read the file
        path.chmod(0o600)
    write_atomic(RunDirectory(run).provenance, json.dumps(provenance, indent=2) + "\n")


def _first_origins(run: Path, provenance: Mapping[str, str]) -> dict[str, str]:
    """Replace origins in RUN/config.yaml itself by the origins recorded for that file."""
    try:
        before = read_json(RunDirectory(run).provenance)
    except (OSError, ValueError):
        before = None
    before = before if isinstance(before, dict) else {}
    own = f"{RunDirectory(run).config}:"
    return {key: before.get(key, origin) if origin.startswith(own) else origin for key, origin in provenance.items()}


def _shown(value: Any) -> str:
    return "unset" if value is None else redact(json.dumps(value))
