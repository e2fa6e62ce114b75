"""RUN/submission.json: the last submission of a run to a backend."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brt_dist.errors import PlatformError
from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory

# queued: no process yet; ended: for whatever reason, which the run directory knows; unknown: cannot be told now
State = Literal["queued", "running", "ended", "unknown"]


@dataclass(frozen=True)
class Submission:
    """A run that a backend was given.

    Attributes:
        backend: by name.
        job: the backend's own name for it.
        number: how often the run was submitted, this time included.
        submitted: unix time.
        details: what the backend needs to find the job again.
    """

    backend: str
    job: str
    number: int
    submitted: float
    details: dict[str, str]

    def write(self, run: Path) -> None:
        write_atomic(RunDirectory(run).submission, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(run: Path) -> "Submission | None":
        """The last submission of a run, None if it never was submitted.

        Raises:
            PlatformError: the file is damaged.
        """
        path = RunDirectory(run).submission
        try:
            return Submission(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise PlatformError(f"{path} cannot be read ({error}); remove it to submit the run again") from None
