"""The run directory at the start of an attempt: made, or taken up again if the config still describes the same run."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brt_dist.config.changes import changes
from brt_dist.config.loading import Resolved, dump, flatten, load
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.files import write_atomic
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


@contextmanager
def claimed(run: Path, holds: str = "config.yaml", command: str = "brt train") -> Iterator[bool]:
    """Hold the run directory for this process; yields whether it is a run already.

    holds: the file that says so.  command: which uses such folders.

    PlatformError: it cannot be written, another process has it, or it holds something else.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115 - held until the end of the block
    except OSError as error:
        raise PlatformError(f"run directory {run}: {error.strerror}; set run.directory to a writable place") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PlatformError(
                f"run directory {run} is in use by another `{command}`; wait for it, or set another run.directory"
            ) from None
        known = (run / holds).is_file()
        others = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith("."))
        if others and not known:
            raise PlatformError(
                f"run directory {run} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) "
                f"and no run; nearest: run.directory={run / 'run'}"
            )
        yield known


def refuse_other_run(run: Path, config: Config) -> None:
    """ConfigError listing every difference that would make this another run than the one in `run`."""
    before = flatten(load(run / "config.yaml").config)
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
    path = run / "config.yaml"
    text = dump(resolved.config)
    provenance = _first_origins(run, resolved.provenance)
    write_atomic(path, text)
    if redact(text) != text:  # the tracking URI holds a password: the file is the owner's alone
        path.chmod(0o600)
    write_atomic(run / "provenance.json", json.dumps(provenance, indent=2) + "\n")


def _first_origins(run: Path, provenance: Mapping[str, str]) -> dict[str, str]:
    """Values that were taken from RUN/config.yaml itself came from where that says they did."""
    try:
        before = json.loads((run / "provenance.json").read_text())
    except (OSError, ValueError):
        before = {}
    own = f"{run / 'config.yaml'}:"
    return {key: before.get(key, origin) if origin.startswith(own) else origin for key, origin in provenance.items()}


def _shown(value: Any) -> str:
    return "none" if value is None else redact(json.dumps(value))


def attempt_folder(run: Path, attempt: int) -> Path:
    return run / "attempts" / f"{attempt:03d}"


def next_attempt(run: Path) -> int:
    """One more than the attempts that have a folder."""
    return max(attempts(run), default=0) + 1


def attempts(run: Path) -> list[int]:
    folder = run / "attempts"
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def read_attempt(run: Path, attempt: int) -> dict[str, Any]:
    """attempt.json, or nothing where there is none (torchrun)."""
    try:
        record = json.loads((attempt_folder(run, attempt) / "attempt.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def rank_log(folder: Path, rank: int) -> Path:
    """Where the output of a rank goes; `folder` is RUN/attempts/NNN."""
    return folder / f"rank_{rank:03d}.log"
