"""The syncer as a child process of the launcher, which waits for it only a bounded time.  Does not import mlflow."""

import os
import shlex
import subprocess
import time
from pathlib import Path

from brt_dist.run_directory import RunDirectory
from launch.run.python import module_command
from launch.tracking.health import Health

_LOOK_SECONDS = 1.0


class SyncerProcess:
    """Runs `python -m launch.tracking.syncer RUN --follow`, which ends when this process does.

    Args:
        run: the run directory.
        finish_seconds: longest time to wait for it at the end of the run.
    """

    def __init__(self, run: Path, finish_seconds: float = 60.0) -> None:
        self._run, self._finish_seconds = run, finish_seconds
        self._started, self._next_look, self._told = time.time(), 0.0, False
        log = RunDirectory(run).syncer_log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = module_command("launch.tracking.syncer", str(run), "--follow")
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [*command, "--finish-seconds", str(finish_seconds)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # not interrupted by Ctrl-C: it still has to send the end of the run
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def new_refusal(self) -> str | None:
        """A message that the server rejects the credentials, once; else None."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + _LOOK_SECONDS
        health = Health.read(self._run)
        if health is None or health.since < self._started or health.state != "refused" or self._told:
            return None
        self._told = True
        return health.problem

    def finish(self) -> bool:
        """Let it send the rest; true if everything was sent, false if it failed or ran out of time."""
        self._close()
        try:
            return self._process.wait(self._finish_seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill it; the rest can be sent later."""
        self._close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()


def finish_command(run: Path) -> str:
    """The command that sends the rest."""
    return shlex.join(module_command("launch.tracking.syncer", str(run)))
