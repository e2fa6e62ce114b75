"""Reading RUN/metrics.jsonl while it is written: whole lines only, the later line of a step wins."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

FILE_NAME = "metrics.jsonl"

Event: TypeAlias = dict[str, Any]


class EventReader:
    """Follows the events of a run from a byte offset on.

    offset: of the first byte that was not yet returned as part of a whole line; start again from there.  file: another
    file of such lines, relative to the run.
    """

    def __init__(self, run: Path, offset: int = 0, file: str = FILE_NAME) -> None:
        self._path = run / file
        self.offset = offset

    def read(self, limit: int | None = None) -> list[Event]:
        """The events that were added since the last call, at most `limit` lines; none while there is no file."""
        events: list[Event] = []
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below; only a missing file is expected
        except FileNotFoundError:
            return events
        with file:
            file.seek(self.offset)
            for count, line in enumerate(file):
                if not line.endswith(b"\n") or count == limit:
                    break
                self.offset += len(line)
                event = _parse(line)
                if event is not None:
                    events.append(event)
        return events


def read_events(run: Path) -> list[Event]:
    """All events of a run so far, in the order of writing."""
    return EventReader(run).read()


@dataclass
class History:
    """What a run has been through, with what later attempts did again replaced.

    steps, checkpoints: event by step.  evaluations: event by (step, dataset, memory).
    """

    attempt: Event | None = None
    end: Event | None = None
    steps: dict[int, Event] = field(default_factory=dict)
    evaluations: dict[tuple[int, str, str], Event] = field(default_factory=dict)
    checkpoints: dict[int, Event] = field(default_factory=dict)

    @staticmethod
    def of(events: Iterable[Event]) -> "History":
        history = History()
        history.add(events)
        return history

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            kind = event["event"]
            if kind == "attempt":
                self._begin(event)
            elif kind == "end":
                self.end = event
            elif kind == "step":
                self.steps[event["step"]] = event
            elif kind == "evaluation":
                self.evaluations[event["step"], event["dataset"], event["memory"]] = event
            elif kind == "checkpoint":
                self.checkpoints[event["step"]] = event

    def latest_step(self) -> Event | None:
        return self.steps[max(self.steps)] if self.steps else None

    def _begin(self, event: Event) -> None:
        """A new attempt goes on after `start_step`: what lies beyond was lost and comes again."""
        self.attempt, self.end = event, None
        start = event.get("start_step", 0)
        self.steps = {step: old for step, old in self.steps.items() if step <= start}
        self.evaluations = {key: old for key, old in self.evaluations.items() if key[0] <= start}
        self.checkpoints = {step: old for step, old in self.checkpoints.items() if step <= start}


def _parse(line: bytes) -> Event | None:
    """None for half a line (an attempt was killed while writing it) and for anything else that is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    needed = {
        "step": ("step",),
        "evaluation": ("step", "dataset", "memory"),
        "checkpoint": ("step",),
        "sample": ("step",),
    }
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if all(key in event for key in needed.get(event["event"], ())) else None
