"""Starts ordinary processes, watches them, and ends them with everything that they started.  Does not use Ray."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.nodes.reaper import descendants

REAPER = Path(__file__).with_name("reaper.py")
_STATES = {"T": "is stopped (SIGSTOP)", "t": "is held by a debugger", "D": "waits for a disk"}


@dataclass(frozen=True)
class ProcessSpec:
    """What to start: rank (its number), command, whole environment, working directory, file for its output."""

    rank: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        code: its exit code, or minus the signal.
        time: unix seconds.
        told: it ended after being asked to, so it is not the cause of a failure.
    """

    rank: int
    code: int
    time: float
    told: bool


class ProcessSet:
    """Processes that live and die together, each below a reaper (see reaper.py) in its own session.

    All of them are killed when the owner of this object ends, in whatever way.
    """

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ends: dict[int, End] = {}
        self._told_at: float | None = None
        self._lock = threading.Lock()

    def start(self, specs: Sequence[ProcessSpec]) -> None:
        """Start all processes.

        Raises:
            OSError: one could not be started; none is left running.
        """
        try:
            for spec in specs:
                self._start_one(spec)
        except OSError:
            self.kill()
            raise

    def ended(self) -> dict[int, End]:
        """The processes that have ended so far, by rank."""
        with self._lock:
            return dict(self._ends)

    def pids(self) -> dict[int, int]:
        """The process id of the reaper of each rank that still runs."""
        with self._lock:
            return {rank: process.pid for rank, process in self._running.items() if rank not in self._ends}

    def terminate(self) -> None:
        """Ask all to end (SIGTERM), and return at once."""
        self._told_at = self._told_at or time.time()
        for rank in self.pids():
            self._running[rank].terminate()

    def dump(self) -> dict[int, str]:
        """Have all write the stacks of their threads to their logs (SIGUSR2), before they are killed.

        Returns:
            By rank, why some cannot: they are stopped, or wait for a disk.
        """
        self._told_at = self._told_at or time.time()
        found = {}
        for rank, pid in self.pids().items():
            states = {_state(one) for one in descendants(pid)}
            said = [text for letter, text in _STATES.items() if letter in states]
            if said:
                found[rank] = said[0]
            self._running[rank].send_signal(signal.SIGUSR2)
        return found

    def kill(self, seconds: float = 10.0) -> None:
        """Kill all processes and their descendants, and wait until they are gone."""
        self._told_at = self._told_at or time.time()
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()
        deadline = time.monotonic() + seconds
        for process in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()

    def _start_one(self, spec: ProcessSpec) -> None:
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        with open(spec.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(REAPER), *spec.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(spec.environment),
                cwd=spec.directory,
                start_new_session=True,  # Ctrl-C at the terminal goes to the launcher, which tells the ranks
            )
        self._running[spec.rank] = process
        # One thread each: the order in which they end shows which rank failed first.
        threading.Thread(target=self._wait, args=(spec.rank, process), daemon=True).start()

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        now = time.time()
        with self._lock:
            self._ends[rank] = End(rank, code, now, told=self._told_at is not None)


def _state(pid: int) -> str:
    """The letter of /proc/PID/stat; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
