"""How the sending goes, for others to read: RUN/tracking/health.json, written by the syncer when it changes."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact

State = Literal["sending", "away", "refused"]


@dataclass(frozen=True)
class Health:
    """away: the server gives no good answer, which may pass; refused: it does not take the credentials.

    since: unix seconds; problem: in words for the user, without credentials; empty when there is none.
    """

    state: State
    since: float
    problem: str = ""

    @staticmethod
    def read(run: Path) -> "Health | None":
        """None where nothing was ever sent."""
        try:
            return Health(**json.loads(RunDirectory(run).tracking_health.read_text()))
        except (OSError, ValueError, TypeError):
            return None


class HealthRecord:
    """Writes the state when it changes, not every time that it is told."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._last: State | None = None

    def tell(self, state: State, problem: str = "") -> None:
        if state != self._last:
            self._last = state
            health = Health(state, time.time(), redact(problem))
            write_atomic(RunDirectory(self._run).tracking_health, json.dumps(asdict(health), indent=2) + "\n")
