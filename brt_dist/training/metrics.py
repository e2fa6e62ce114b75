"""Events of a run: one JSON object a line in RUN/metrics.jsonl, appended by rank 0 only."""

import json
import time
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"


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
            path = run / FILE_NAME
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open for the life of the run
            self._end_cut_line()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time of now (unix seconds)."""
        if self._file is not None:
            line = json.dumps({"event": event, "time": time.time(), "attempt": self._attempt, **fields})
            self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_cut_line(self) -> None:
        """A killed attempt may have left half a line: close it, so that ours begins on a line of its own."""
        if self._file is None or self._file.seek(0, 2) == 0:
            return
        self._file.seek(-1, 2)
        if self._file.read(1) != b"\n":
            self._file.write(b"\n")
