"""How far a run has been sent: RUN/tracking/state.json, written after every batch."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory
from launch.tracking.names import CURRENT, FIRST
from launch.tracking.rows import Carried


@dataclass
class SyncState:
    """How far a run has been sent.

    Attributes:
        server: fingerprint of the tracking server.
        identity: a tag that finds the run there even if this process is killed right after creating it.
        run_id: id of the MLflow run, once it exists.
        experiment_id: id of its experiment, once it exists.
        offset: bytes of metrics.jsonl that were sent.
        sent: see `rows`.
        params: what was sent as params, which cannot change on the server.
        samples: by file of RUN/system, bytes and samples sent.
        carried: see `rows`.
        names: version of the names of metrics; older files have none, and their runs use the first names.
    """

    server: str
    identity: str = field(default_factory=lambda: secrets.token_hex(16))
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    params: dict[str, str] | None = None
    samples: dict[str, tuple[int, int]] = field(default_factory=dict)
    carried: Carried = field(default_factory=dict)
    names: int = CURRENT

    @staticmethod
    def load(run: Path, server: str) -> "SyncState":
        """The state for this server; a new one if there is none or it belongs to another server."""
        try:
            state = SyncState(**{"names": FIRST, **json.loads(RunDirectory(run).sync_state.read_text())})
        except (OSError, ValueError, TypeError):
            return SyncState(server)
        return state if state.server == server else SyncState(server)

    def save(self, run: Path) -> None:
        write_atomic(RunDirectory(run).sync_state, json.dumps(asdict(self), indent=2) + "\n")
