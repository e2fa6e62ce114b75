"""A job: a run as it is passed to a backend, and where its submissions keep their files."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from brt_dist.run_directory import RunDirectory
from launch.run.submission import Submission

if TYPE_CHECKING:
    from brt_dist.config.schema import Config


@dataclass(frozen=True)
class Job:
    """What is passed to a backend.

    Attributes:
        config: the resolved config of the run.
        number: number of the submission, from 1.
        created: unix time.
    """

    config: "Config"
    number: int
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def run(self) -> Path:
        return self.config.run.directory

    @property
    def folder(self) -> Path:
        """RUN/submissions/NNN: the files of this submission (its log, the token and address of its cluster)."""
        return RunDirectory(self.run).submission_folder(self.number)

    @property
    def config_text(self) -> str:
        """The resolved config as YAML."""
        from brt_dist.config.loading import dump

        return dump(self.config)

    @property
    def label(self) -> str:
        """The run's name in characters that every backend allows: at most 40 of a-z, 0-9 and -."""
        return re.sub(r"[^a-z0-9]+", "-", self.config.run.name.lower())[:40].strip("-") or "run"

    def submitted(self, name: str, **details: str) -> Submission:
        """This job as a submission.

        Args:
            name: the backend's own name for it.
            details: what the backend needs to find it again.
        """
        return Submission(self.config.launch.backend, name, self.number, time.time(), details)


def private_folder(folder: Path) -> None:
    """Create `folder` with access for its owner only, since it may hold a token."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def chunks(path: Path) -> Iterator[str]:
    """The content of a log, in chunks; nothing if it does not exist yet."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while chunk := file.read(1 << 16):
                yield chunk
    except FileNotFoundError:
        return
