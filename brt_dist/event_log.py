"""The file of events, RUN/metrics.jsonl: appended by rank 0, followed by everybody else while it grows."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from brt_dist.events import Event, line_of, parse
from brt_dist.run_directory import RunDirectory

E = TypeVar("E", bound=Event)


class EventLog:
    """Appends events; each line is written in one call, so a reader sees whole lines or a cut last one.

    Args:
        run: the run directory.
        attempt: number of the attempt, written into every event.
        enabled: false on all ranks but the first, which then write nothing.
    """

    def __init__(self, run: Path, attempt: int, enabled: bool) -> None:
        self._attempt = attempt
        self._file = None
        if enabled:
            self._file = open(RunDirectory(run).events, "a+b", buffering=0)  # noqa: SIM115 - open for the life of the run
            self._end_cut_line()

    def write(self, event: Event) -> None:
        """Append one event, with the current time."""
        if self._file is not None:
            self._file.write(line_of(dataclasses.replace(event, time=time.time(), attempt=self._attempt)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_cut_line(self) -> None:
        """End the line that a killed attempt may have left unfinished, so that ours begins a new line."""
        if self._file is None or self._file.seek(0, 2) == 0:
            return
        self._file.seek(-1, 2)
        if self._file.read(1) != b"\n":
            self._file.write(b"\n")


class EventReader:
    """Follows the events of a run from a byte offset on.

    Args:
        run: the run directory.
        offset: of the first byte not yet returned as part of a whole line; a later reader may start from there.
        file: another file of events.
        kinds: return only events of these kinds.
    """

    def __init__(
        self, run: Path, offset: int = 0, file: Path | None = None, kinds: Iterable[type[Event]] | None = None
    ) -> None:
        self._path = file or RunDirectory(run).events
        self.offset = offset
        self._names = None if kinds is None else tuple(f'"{kind.kind}"'.encode() for kind in kinds)
        self._kinds = None if kinds is None else tuple(kinds)

    def read(self, limit: int | None = None) -> list[Event]:
        """The events added since the last call, from at most `limit` lines; empty while there is no file."""
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
                if self._names is not None and not any(name in line for name in self._names):
                    continue  # without parsing it: a long run has many steps and few other events
                event = parse(line)
                if event is not None and (self._kinds is None or isinstance(event, self._kinds)):
                    events.append(event)
        return events


def read_events(run: Path) -> list[Event]:
    """All events of a run so far, in the order of writing."""
    return EventReader(run).read()


def events_of(run: Path, kind: type[E]) -> list[E]:
    """All events of one kind so far, in the order of writing."""
    return [event for event in EventReader(run, kinds=[kind]).read() if isinstance(event, kind)]
