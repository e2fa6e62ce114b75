"""Adds to a run what was measured after it ended."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.errors import PlatformError
from brt_dist.event_log import EventLog
from brt_dist.events import Event
from brt_dist.run_directory import RunDirectory
from launch.run.claim import claimed
from launch.run.python import module_command


def add_to_run(run: Path, events: Sequence[Event]) -> None:
    """Append events to a run that is not running, and send them to its MLflow run if it is tracked.

    Raises:
        ConfigError: the folder holds no run.
        PlatformError: it is running, or the tracking server does not accept the data.
    """
    directory = RunDirectory.existing(run)
    with claimed(run):
        log = EventLog(run, max(directory.attempts(), default=0), enabled=True)
        for event in events:
            log.write(event)
        log.close()
    if not load(directory.config).config.run.tracking.enabled:
        return
    command = module_command("launch.tracking.syncer", str(run))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlatformError(f"added to {run}, but not sent to MLflow: {done.stderr.strip()[-500:]}")
