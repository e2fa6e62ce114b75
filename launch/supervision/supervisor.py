"""Runs one attempt: starts the ranks, watches them, stops them together, and says why they ended."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from brt_dist.errors import ExitCode
from brt_dist.failure import Failure
from brt_dist.run_directory import AttemptDirectory, RunDirectory
from launch.nodes.processes import End
from launch.run.attempt_record import AttemptRecord
from launch.supervision.hang import HangWatch
from launch.supervision.head import HeadWatch
from launch.supervision.signals import StopRequests
from launch.supervision.verdict import Verdict, judge

_UNKILLABLE_SECONDS = 30.0  # a process that hangs in the kernel does not die; do not wait for it


class Ranks(Protocol):
    """All ranks of the world; `launch.nodes.gang.Gang` is the real one."""

    def start(self, command: tuple[str, ...], directory: Path, folder: Path) -> None: ...
    def ended(self) -> dict[int, End]: ...
    def terminate(self) -> None: ...
    def dump(self) -> dict[int, str]: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Patience:
    """How long the supervisor waits, in seconds.

    Attributes:
        look: between checks of the ranks.
        failed: for the other ranks to end, after one failed.
        saving: for the ranks to save, after the user asked to stop.
        last: for the last rank to end, after the first ended well.
        dump: for the ranks to write their stacks.
        headless: for the ranks to save, after the Ray head is gone.
    """

    look: float = 0.2
    failed: float = 5.0
    saving: float = 600.0
    last: float = 600.0
    dump: float = 2.0
    headless: float = 40.0


class Supervisor:
    """Runs an attempt of a run directory.

    Args:
        world_size: number of ranks.
        command: returns the command of a rank, given the number of the attempt.
        facts: stored in the record of the attempt.
        on_look: called at every check of the ranks, to update the display.
    """

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        world_size: int,
        command: Callable[[int], tuple[str, ...]],
        stop: StopRequests,
        *,
        patience: Patience | None = None,
        hang: HangWatch | None = None,
        head: HeadWatch | None = None,
        facts: dict[str, Any] | None = None,
        on_look: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._run, self._ranks, self._world_size, self._command = run, ranks, world_size, command
        self._stop, self._patience, self._facts = stop, patience or Patience(), facts or {}
        self._on_look, self._tell, self._hang = on_look, tell, hang
        self._head = head

    def run(self) -> Verdict:
        """Run one attempt, from the start of the ranks until all have ended."""
        directory = RunDirectory(self._run)
        attempt = directory.next_attempt()
        place = directory.attempt(attempt)
        folder = place.path
        folder.mkdir(parents=True)
        record = AttemptRecord.of(attempt, {"start": time.time(), **self._facts})
        record.write(place)
        verdict = Verdict(ExitCode.INTERNAL, "the launcher failed")
        ends: dict[int, End] = {}
        try:
            self._ranks.start(self._command(attempt), Path.cwd(), folder)
            ends, cause = self._watch(folder)
            verdict = Verdict.of(cause) if cause else judge(ends, folder, self._stop.count > 0)
            return verdict
        except BaseException as error:
            verdict = Verdict(getattr(error, "exit_code", ExitCode.INTERNAL), str(error) or type(error).__name__)
            raise
        finally:
            self._ranks.kill()
            codes = {str(rank): ends[rank].code for rank in sorted(ends)}
            _leave(verdict.failure, folder)
            replace(record, end=time.time(), exit_codes=codes, **verdict.to_json()).write(place)

    def _watch(self, folder: Path) -> tuple[dict[int, End], Failure | None]:
        """Watch the ranks until all have ended; stop them if one failed, all hang, or the user asks for it.

        Returns:
            How they ended, and the failure if the supervisor stopped them for a reason unknown to the ranks.
        """
        deadline: float | None = None  # when the ranks that are still running are killed
        stops, killed = 0, False
        cause: Failure | None = None
        while True:
            ends = self._ranks.ended()
            self._on_look()
            if len(ends) == self._world_size:
                return ends, cause
            now = time.monotonic()
            if deadline is None and not ends:
                if self._hang is not None and (hang := self._hang.look(folder)):
                    cause, deadline = Failure(ExitCode.HUNG, self._look_closer(hang), time=time.time()), now
                elif self._head is not None and self._head.is_gone():
                    cause = Failure(ExitCode.LOST_NODE, "the head of the Ray cluster is gone", time=time.time())
                    self._tell(f"{cause.reason}: saving and stopping")
                    self._ranks.terminate()
                    deadline = now + self._patience.headless
            failed = [end for end in ends.values() if end.code not in (ExitCode.FINISHED, ExitCode.PREEMPTED)]
            if self._stop.count > stops:
                stops = self._stop.count
                if stops == 1:
                    self._tell("stopping: the ranks save and exit; press Ctrl-C again to quit without saving")
                    self._ranks.terminate()
                    deadline = now + self._patience.saving
                else:
                    deadline = now
            elif failed and (deadline is None or deadline > now + self._patience.failed):
                self._ranks.terminate()
                deadline = now + self._patience.failed
            elif ends and deadline is None:
                deadline = now + self._patience.last
            if deadline is not None and now >= deadline and not killed:
                self._ranks.kill()
                killed = True
                continue
            if deadline is not None and now >= deadline + _UNKILLABLE_SECONDS:
                lost = {rank: End(rank, -signal.SIGKILL, time.time(), told=True) for rank in range(self._world_size)}
                return lost | ends, cause
            time.sleep(self._patience.look)

    def _look_closer(self, hang: str) -> str:
        """Have the ranks write their stacks to their logs before they are killed."""
        self._tell(f"{hang}; writing the stacks of all ranks to their logs")
        special = self._ranks.dump()
        time.sleep(self._patience.dump)
        return "; ".join([hang, *(f"rank {rank} {text}" for rank, text in sorted(special.items()))])


def _leave(failure: Failure | None, folder: Path) -> None:
    """Write the record of the rank that failed, unless it did so itself."""
    if failure is not None and failure.rank is not None:
        with suppress(OSError):  # it is in the record of the attempt too
            failure.write(AttemptDirectory(folder).failure(failure.rank))
