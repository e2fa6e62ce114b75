"""A run that was given to a backend: what is submitted, and the record of it in the run."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brt_dist.errors import PlatformError
from brt_dist.files import write_atomic

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

RECORD = "submission.json"

# queued: no process yet; ended: for whatever reason, which the run directory knows; unknown: cannot be told now
State = Literal["queued", "running", "ended", "unknown"]


@dataclass(frozen=True)
class Job:
    """What a backend is given: the resolved config of a run, how often the run was submitted (from 1), and when."""

    config: "Config"
    number: int
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def run(self) -> Path:
        return self.config.run.directory

    @property
    def folder(self) -> Path:
        """RUN/submissions/NNN: what belongs to this submission alone (its log, token and address of its cluster)."""
        return self.run / "submissions" / f"{self.number:03d}"

    @property
    def config_text(self) -> str:
        """The resolved config as YAML."""
        from brt_dist.config.loading import dump

        return dump(self.config)

    @property
    def label(self) -> str:
        """The run's name in the letters that every backend allows: at most 40 of a-z, 0-9 and -."""
        return re.sub(r"[^a-z0-9]+", "-", self.config.run.name.lower())[:40].strip("-") or "run"


@dataclass(frozen=True)
class Record:
    """RUN/submission.json.  job: the backend's own name for it; details: what the backend needs to find it again."""

    backend: str
    job: str
    number: int
    submitted: float
    details: dict[str, str]

    def write(self, run: Path) -> None:
        write_atomic(run / RECORD, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(run: Path) -> "Record | None":
        """The last submission of a run, none if it never was.  PlatformError: the file is damaged."""
        try:
            return Record(**json.loads((run / RECORD).read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise PlatformError(f"{run / RECORD} cannot be read ({error}); remove it to submit the run anew") from None

    @staticmethod
    def of(job: Job, name: str, **details: str) -> "Record":
        return Record(job.config.launch.backend, name, job.number, time.time(), details)


def private_folder(folder: Path) -> None:
    """Make `folder` for its owner alone: a token may lie in it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def pieces(path: Path) -> Iterator[str]:
    """The content of a log, in pieces; nothing where there is none yet."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while piece := file.read(1 << 16):
                yield piece
    except FileNotFoundError:
        return


def stop_file(run: Path) -> Path:
    """It is there from `brt stop` until the next submission: the job was not preempted, and is not queued again."""
    return run / ".stop"
