"""RUN/attempts/NNN/attempt.json: where an attempt ran, and how it ended."""

import json
from pathlib import Path
from typing import Any

from brt_dist.run_directory import RunDirectory


def read_attempt(run: Path, attempt: int) -> dict[str, Any]:
    """The record of an attempt; empty if there is none (torchrun)."""
    try:
        record = json.loads(RunDirectory(run).attempt(attempt).record.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """The records of all attempts, in order."""
    return [read_attempt(run, number) for number in RunDirectory(run).attempts()]


def read_last_attempt(run: Path) -> dict[str, Any]:
    """The record of the last attempt; empty if there is none."""
    numbers = RunDirectory(run).attempts()
    return read_attempt(run, numbers[-1]) if numbers else {}
