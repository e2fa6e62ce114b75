"""The facts of a report, collected from the files of a run directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brt_dist.config.loading import flatten, load
from brt_dist.event_log import read_events
from brt_dist.events import AttemptEvent, Event
from brt_dist.run_directory import RunDirectory
from launch.run.attempt_record import AttemptRecord, read_attempts
from launch.run.history import History
from launch.run.redact import redact


@dataclass(frozen=True)
class RunFacts:
    """What a report shows of a run.

    Attributes:
        folder: the run directory.
        name: run.name.
        steps: of the whole run.
        events: all, in the order of writing.
        attempts: their records.
        config: values by flat key.
        origins: of those values.
    """

    folder: Path
    name: str
    steps: int
    events: list[Event]
    attempts: list[AttemptRecord]
    config: dict[str, Any]
    origins: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "RunFacts":
        """Collect the facts of a run.

        Raises:
            ConfigError: the folder holds no run.
        """
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
        return "running" if last.end is None else last.verdict or "unknown"

    @property
    def seconds(self) -> float:
        """Time in attempts, up to the last event of one that has not ended."""
        latest = self.events[-1].time if self.events else 0.0
        begun = [(record.start, record.end or latest) for record in self.attempts if record.start is not None]
        return sum(max(end - start, 0.0) for start, end in begun)

    @property
    def hosts(self) -> list[str]:
        return sorted({host for record in self.attempts[-1:] for host in record.nodes})

    @property
    def layout(self) -> str:
        if (attempt := self.history.attempt) is None:
            return "-"
        layout = attempt.layout
        degrees = (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("data", layout.data))
        return " x ".join(f"{name} {degree}" for name, degree in degrees if degree is not None) or "-"

    @property
    def restarts(self) -> list[tuple[float, str]]:
        """The step after which each attempt but the first resumed, and why it was needed."""
        reasons = {record.attempt: record.reason for record in self.attempts}
        begins = [event for event in self.events if isinstance(event, AttemptEvent)][1:]
        return [
            (event.start_step, f"attempt {event.attempt} after: {reasons.get((event.attempt or 0) - 1, '')}")
            for event in begins
        ]
