"""What a report says of a run, gathered from the files of its directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brt_dist.config.loading import flatten, load
from brt_dist.events import AttemptEvent, Event, read_events
from brt_dist.run_directory import RunDirectory
from launch.run.attempt_record import read_attempts
from launch.run.history import History
from launch.run.redact import redact


@dataclass(frozen=True)
class RunFacts:
    """events: all, in order of writing.  attempts: their records.  config: flat.  origins: of its values."""

    folder: Path
    name: str
    steps: int
    events: list[Event]
    attempts: list[dict[str, Any]]
    config: dict[str, Any]
    origins: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "RunFacts":
        """ConfigError: no run there."""
        run = RunDirectory.existing(folder)
        config = load(run.config).config
        try:
            origins = json.loads(run.provenance.read_text())
        except (OSError, ValueError):
            origins = {}
        # the tracking URI may hold a password
        flat = {key: redact(value) if isinstance(value, str) else value for key, value in flatten(config).items()}
        records = read_attempts(folder)
        return cls(folder, config.run.name, config.run.steps, read_events(folder), records, flat, origins)

    @property
    def history(self) -> History:
        return History.of(self.events)

    @property
    def status(self) -> str:
        if not self.attempts:
            return "not started"
        last = self.attempts[-1]
        return "running" if "end" not in last else str(last.get("verdict", "unknown"))

    @property
    def seconds(self) -> float:
        """In attempts that have ended, and to the last event of one that has not."""
        latest = self.events[-1].time if self.events else 0.0
        return sum(
            max(record.get("end", latest) - record["start"], 0.0) for record in self.attempts if "start" in record
        )

    @property
    def hosts(self) -> list[str]:
        return sorted({host for record in self.attempts[-1:] for host in record.get("nodes", [])})

    @property
    def layout(self) -> str:
        if (attempt := self.history.attempt) is None:
            return "-"
        layout = attempt.layout
        degrees = (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("data", layout.data))
        return " x ".join(f"{name} {degree}" for name, degree in degrees if degree is not None) or "-"

    @property
    def restarts(self) -> list[tuple[float, str]]:
        """Step from which each attempt but the first went on, and why there was one."""
        reasons = {record.get("attempt"): record.get("reason", "") for record in self.attempts}
        begins = [event for event in self.events if isinstance(event, AttemptEvent)][1:]
        return [
            (event.start_step, f"attempt {event.attempt}, after: {reasons.get((event.attempt or 0) - 1, '')}")
            for event in begins
        ]
