"""The paths in a run directory.  No other code joins a name to the folder of a run."""

import re
from dataclasses import dataclass
from pathlib import Path

from brt_dist.errors import ConfigError


@dataclass(frozen=True)
class AttemptDirectory:
    """RUN/attempts/NNN and the files in it."""

    path: Path

    @property
    def run(self) -> "RunDirectory":
        return RunDirectory(self.path.parent.parent)

    @property
    def record(self) -> Path:
        """Where the attempt ran and how it ended; written by the supervisor."""
        return self.path / "attempt.json"

    @property
    def heartbeat(self) -> Path:
        """Heartbeat of rank 0."""
        return self.path / "heartbeat.json"

    def log(self, rank: int) -> Path:
        """Output of a rank."""
        return self.path / f"rank_{rank:03d}.log"

    def logs(self) -> list[Path]:
        """The existing logs, by rank."""
        return sorted(self.path.glob("rank_*.log"))

    def failure(self, rank: int) -> Path:
        """Why a rank failed."""
        return self.path / f"rank_{rank:03d}.error.json"


@dataclass(frozen=True)
class RunDirectory:
    """RUN and the files in it.  Creating this object touches no file.

    Args:
        path: the folder, `run.directory` of the config.
    """

    path: Path

    @classmethod
    def existing(cls, path: Path) -> "RunDirectory":
        """The directory of an existing run.

        Raises:
            ConfigError: there is no run in `path`.
        """
        run = cls(path)
        if not run.is_run:
            raise ConfigError(f"{path} is not a run directory: it has no {run.config.name}")
        return run

    @property
    def is_run(self) -> bool:
        return self.config.is_file()

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Where each value of the config came from."""
        return self.path / "provenance.json"

    @property
    def events(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, unless `run.checkpoints` names another place."""
        return self.path / "checkpoints"

    @property
    def adjustments(self) -> Path:
        """Adjustments of the run after it diverged."""
        return self.path / "adjustments.json"

    @property
    def loss_plot(self) -> Path:
        return self.path / "plots" / "loss.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """Lock of the run's launcher."""
        return self.path / ".lock"

    # attempts

    def attempts(self) -> list[int]:
        """Numbers of the attempts so far, in order."""
        folder = self.path / "attempts"
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []

    def next_attempt(self) -> int:
        """One more than the last attempt's number."""
        return max(self.attempts(), default=0) + 1

    def attempt(self, number: int) -> AttemptDirectory:
        return AttemptDirectory(self.path / "attempts" / f"{number:03d}")

    # submissions to a backend

    @property
    def submission(self) -> Path:
        """The last submission."""
        return self.path / "submission.json"

    def submission_folder(self, number: int) -> Path:
        """Files of one submission: its log, and its cluster's token and address."""
        return self.path / "submissions" / f"{number:03d}"

    def submission_log(self, number: int) -> Path:
        """Output of a submission's launcher."""
        return self.submission_folder(number) / "log"

    @property
    def stop_request(self) -> Path:
        """Exists from `brt stop` until the next submission: the job was not preempted, so it is not requeued."""
        return self.path / ".stop"

    # tracking

    @property
    def tracking(self) -> Path:
        return self.path / "tracking"

    @property
    def mlflow_store(self) -> Path:
        """MLflow's database for this run alone."""
        return self.tracking / "mlflow.db"

    @property
    def shared_mlflow_store(self) -> Path:
        """MLflow's database for all runs beside this one."""
        return self.path.parent / "mlflow.db"

    @property
    def sync_state(self) -> Path:
        """How much of the run was sent to the tracking server."""
        return self.tracking / "state.json"

    @property
    def tracking_health(self) -> Path:
        """Whether the tracking server accepts the data."""
        return self.tracking / "health.json"

    @property
    def syncer_log(self) -> Path:
        return self.tracking / "syncer.log"

    @property
    def syncer_lock(self) -> Path:
        return self.tracking / ".lock"

    # system metrics of the nodes

    def system_metrics(self, host: str) -> Path:
        """System metrics of a node (CPU, memory, disk, network, GPUs), as events."""
        return self.path / "system" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}.jsonl"

    def all_system_metrics(self) -> list[Path]:
        """The system metrics of all nodes."""
        return sorted((self.path / "system").glob("*.jsonl"))
