"""The config of a run in its directory: written, and compared with one that shall resume the run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brt_dist.config.changes import changes
from brt_dist.config.loading import Resolved, dump, flatten, load
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact


def absolute(config: Config) -> Config:
    """`config` with absolute folders, so that it means the same for every process, wherever that was started."""
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
            "run": run.model_copy(update={"directory": Path(os.path.abspath(run.directory)), **places}),
        }
    )


def _absolute(place: Path | str | None) -> Path | str | None:
    return Path(os.path.abspath(place)) if isinstance(place, Path) else place


def refuse_other_run(run: Path, config: Config) -> None:
    """ConfigError listing every difference that would make this another run than the one in `run`."""
    before = flatten(load(RunDirectory(run).config).config)
    differences = [
        f"  - {change.key}: {_shown(change.before)} in the run, {_shown(change.now)} now"
        + (f" (cannot change: {change.reason})" if change.reason else "")
        for change in changes(before, flatten(config), config.run.allow)
    ]
    if differences:
        raise ConfigError(
            f"run directory {run} holds a run with another config:\n"
            + "\n".join(differences)
            + "\nput these back to go on with it, name those that are wanted in run.allow, or set another "
            "run.directory for a new run"
        )


def write_config(run: Path, resolved: Resolved) -> None:
    """Write RUN/config.yaml and RUN/provenance.json."""
    path = RunDirectory(run).config
    text = dump(resolved.config)
    provenance = _first_origins(run, resolved.provenance)
    write_atomic(path, text)
    if redact(text) != text:  # the tracking URI holds a password: the file is the owner's alone
        path.chmod(0o600)
    write_atomic(RunDirectory(run).provenance, json.dumps(provenance, indent=2) + "\n")


def _first_origins(run: Path, provenance: Mapping[str, str]) -> dict[str, str]:
    """Values that were taken from RUN/config.yaml itself came from where that says they did."""
    try:
        before = json.loads(RunDirectory(run).provenance.read_text())
    except (OSError, ValueError):
        before = {}
    own = f"{RunDirectory(run).config}:"
    return {key: before.get(key, origin) if origin.startswith(own) else origin for key, origin in provenance.items()}


def _shown(value: Any) -> str:
    return "none" if value is None else redact(json.dumps(value))
