"""RUN/submission.json: the last submission of a run to a backend."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brt_dist.errors import PlatformError
from brt_dist.files import write_atomic
from brt_dist.reading import read_record
from brt_dist.run_directory import RunDirectory
from launch.run.moment import Moment

# queued: no process yet; ended: the run directory says why; unknown: the backend cannot say now
State = Literal["queued", "running", "ended", "unknown"]


@dataclass(frozen=True)
class Submission:
    """One submission of a run.

    Attributes:
        backend: its name.
        job: the backend's name for the job.
        number: how many times the run was submitted, including this one.
        submitted: unix time.
        details: what the backend needs to find the job again.
    """

    backend: str
    job: str
    number: int
    submitted: Moment
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
            return read_record(path, Submission)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise PlatformError(f"{path} cannot be read ({error}); remove it to submit the run again") from None
