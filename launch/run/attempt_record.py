"""RUN/attempts/NNN/attempt.json: where an attempt ran, and how it ended."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from brt_dist.files import write_atomic
from brt_dist.reading import read_json, record_of
from brt_dist.run_directory import AttemptDirectory, RunDirectory
from launch.run.moment import Moment


@dataclass(frozen=True)
class AttemptRecord:
    """What attempt.json says of an attempt; all but the number may be unknown.

    Attributes:
        attempt: its number.
        start: unix seconds; None if nothing is recorded (torchrun).
        end: unix seconds; None if it is running, or its launcher was killed.
        host: of the launcher.
        git_commit: of the launcher's code.
        versions: of the libraries that decide what a run computes.
        nodes: host names.
        device: kind of device that all ranks use.
        layout: degrees of parallelism.
        exit_codes: of the ranks, by number.
        exit_code: of the attempt.
        verdict: name of the exit code.
        reason: one line.
        failure: what failed first.
        decision: what the launcher did next (`action`, `why`).
        failed_rank: written by version 0.1.0 in place of `failure`.
        detail: likewise.
    """

    attempt: int
    start: Moment | None = None
    end: Moment | None = None
    host: str | None = None
    git_commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    device: str | None = None
    layout: Mapping[str, int] = field(default_factory=dict)
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    verdict: str | None = None
    reason: str = ""
    failure: Mapping[str, Any] | None = None
    decision: Mapping[str, str] = field(default_factory=dict)
    failed_rank: int | None = None
    detail: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether it began and no end is recorded; its launcher may be gone."""
        return self.start is not None and self.end is None

    @property
    def is_last(self) -> bool:
        """Whether it ended and the launcher decided not to start another."""
        return self.end is not None and self.decision.get("action", "stop") == "stop"

    @classmethod
    def of(cls, attempt: int, values: Mapping[str, Any]) -> "AttemptRecord":
        """From the values of attempt.json, without nulls, unknown keys and values of a wrong type."""
        known = {item.name for item in fields(cls)} - {"attempt"}
        given = {name: value for name, value in values.items() if name in known and value is not None}
        for name in list(given):
            try:
                record_of({"attempt": attempt, name: given[name]}, cls)
            except ValueError:  # damaged, or written by something else
                del given[name]
        return record_of({**given, "attempt": attempt}, cls)

    def to_json(self) -> dict[str, Any]:
        """The values that are known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, (), "")}

    def write(self, directory: AttemptDirectory) -> None:
        write_atomic(directory.record, json.dumps(self.to_json(), indent=2) + "\n")


def read_attempt(run: Path, attempt: int) -> AttemptRecord:
    """The record of an attempt; only its number if there is none (torchrun)."""
    try:
        record = read_json(RunDirectory(run).attempt(attempt).record)
    except (OSError, ValueError):
        record = None
    return AttemptRecord.of(attempt, record if isinstance(record, dict) else {})


def read_attempts(run: Path) -> list[AttemptRecord]:
    """The records of all attempts, in order."""
    return [read_attempt(run, number) for number in RunDirectory(run).attempts()]


def read_last_attempt(run: Path) -> AttemptRecord | None:
    """The record of the last attempt; None if there was none."""
    return next(iter(read_attempts(run)[-1:]), None)
