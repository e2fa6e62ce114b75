"""The state of the syncer, for others to read: RUN/tracking/health.json, written when it changes."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brt_dist.files import write_atomic
from brt_dist.reading import read_record
from brt_dist.run_directory import RunDirectory
from launch.run.moment import Moment
from launch.run.redact import redact

State = Literal["sending", "away", "refused"]


@dataclass(frozen=True)
class Health:
    """Whether metrics reach the server.

    Attributes:
        state: `away`: the server does not answer properly, which may pass; `refused`: it rejects the credentials.
        since: unix seconds.
        problem: a message for the user, without credentials; empty if there is none.
    """

    state: State
    since: Moment
    problem: str = ""

    @staticmethod
    def read(run: Path) -> "Health | None":
        """The current state; None if nothing was ever sent."""
        try:
            return read_record(RunDirectory(run).tracking_health, Health)
        except (OSError, ValueError):
            return None


class HealthRecord:
    """Writes the state to the file only when it changes."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._last: State | None = None

    def tell(self, state: State, problem: str = "") -> None:
        if state != self._last:
            self._last = state
            health = Health(state, time.time(), redact(problem))
            write_atomic(RunDirectory(self._run).tracking_health, json.dumps(asdict(health), indent=2) + "\n")
