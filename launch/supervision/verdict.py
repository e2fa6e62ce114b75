"""The verdict of an attempt, from how its ranks ended.  Pure, except that it reads the ranks' failure records."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brt_dist.errors import ExitCode
from brt_dist.failure import Failure, exit_code
from brt_dist.run_directory import AttemptDirectory
from launch.nodes.processes import End

_TAIL_LINES = 20
# When a rank leaves no record (killed, crashed in C), its peers notice before the launcher does.
_NO_RECORD_HEAD_START_SECONDS = 1.0
_CLEAN = (ExitCode.FINISHED, ExitCode.PREEMPTED)
# What a rank records when it loses another one; only that one knows why it is gone.
_OF_PEERS = (ExitCode.LOST_NODE, ExitCode.HUNG)


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended.

    Attributes:
        exit_code: of the attempt.
        reason: one line.
        failure: what failed first; None if nothing did, or the attempt was stopped.
    """

    exit_code: ExitCode
    reason: str
    failure: Failure | None = None

    @classmethod
    def of(cls, failure: Failure) -> "Verdict":
        return cls(failure.code, failure.summary, failure)

    @property
    def failed_rank(self) -> int | None:
        return self.failure.rank if self.failure else None

    @property
    def detail(self) -> str:
        """The error of the rank that failed first."""
        return self.failure.detail if self.failure else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "exit_code": int(self.exit_code),
            "verdict": self.exit_code.name.lower(),
            "reason": self.reason,
            "failure": self.failure.to_json() if self.failure else None,
        }


def verdict_of(record: Mapping[str, Any]) -> Verdict:
    """The inverse of `Verdict.to_json`; also reads attempt.json of version 0.1.0 (`failed_rank`, `detail`)."""
    code, reason = exit_code(record.get("exit_code")), str(record.get("reason", ""))
    if isinstance(record.get("failure"), dict):
        return Verdict(code, reason, Failure.from_json(record["failure"]))
    rank, detail = record.get("failed_rank"), str(record.get("detail", ""))
    if rank is None and not detail:
        return Verdict(code, reason)
    return Verdict(code, reason, Failure(code, reason, rank=rank, traceback=detail))


def judge(ends: Mapping[int, End], folder: Path, stop_asked: bool) -> Verdict:
    """The verdict of an attempt whose ranks have all ended.

    Args:
        ends: how each rank ended.
        folder: holds their logs and failure records.
        stop_asked: the user or the scheduler asked it to stop.
    """
    failed = [end for end in ends.values() if end.code not in _CLEAN]
    if not failed:
        if any(end.code == ExitCode.PREEMPTED for end in ends.values()):
            return Verdict(ExitCode.PREEMPTED, "saved as requested; run the same command to continue")
        return Verdict(ExitCode.FINISHED, "finished")
    untold = [end for end in failed if not end.told]
    if untold:
        return Verdict.of(_first_failure(untold, AttemptDirectory(folder)))
    if stop_asked:
        return Verdict(
            ExitCode.INTERRUPTED, "stopped without saving; run the same command to continue from the last checkpoint"
        )
    names = ", ".join(str(end.rank) for end in failed)
    reason = f"rank {names} did not exit although the others had"
    return Verdict(ExitCode.HUNG, reason, Failure(ExitCode.HUNG, reason, rank=failed[0].rank, time=failed[0].time))


def _first_failure(untold: list[End], attempt: AttemptDirectory) -> Failure:
    """What failed first; the ranks in `untold` ended without being asked to."""
    recorded = {end.rank: Failure.read(attempt.failure(end.rank)) for end in untold}
    first = min(untold, key=lambda end: _order(end, recorded[end.rank]))
    failure = recorded[first.rank]
    lost = [end for end in untold if end.code == ExitCode.LOST_NODE and recorded[end.rank] is None]
    if lost and (failure is None or failure.code in _OF_PEERS):
        # Peers notice a lost node before the launcher finds that it is gone.
        ranks = ", ".join(str(end.rank) for end in lost)
        reason = f"the node of rank {ranks} was lost: its agent is gone"
        return Failure(ExitCode.LOST_NODE, reason, rank=lost[0].rank, time=lost[0].time)
    if failure is not None:
        return failure
    tail = _tail(attempt.log(first.rank))
    code, how = _by_exit(first.code, tail)
    return Failure(code, f"rank {first.rank} {how}", rank=first.rank, time=first.time, traceback=tail)


def _order(end: End, failure: Failure | None) -> float:
    return end.time - _NO_RECORD_HEAD_START_SECONDS if failure is None else failure.time or end.time


def _by_exit(code: int, tail: str) -> tuple[ExitCode, str]:
    if code == ExitCode.OUT_OF_MEMORY:  # see reaper.py; a rank that ran out of memory by itself leaves a report
        return ExitCode.OUT_OF_MEMORY, (
            "was killed by the kernel: the machine is out of memory; nearest: a smaller model, fewer data.streams or "
            "ranks, or a shorter data.segment"
        )
    if code >= 0:
        return exit_code(code), f"exited with code {code} without a report"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL:
        return (
            ExitCode.LOST_NODE,
            f"was killed ({name}); unless someone killed it, the machine probably ran out of memory",
        )
    if -code == signal.SIGABRT and "Watchdog caught collective operation timeout" in tail:
        return ExitCode.HUNG, "timed out waiting for the other ranks (see its log)"
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return ExitCode.LOST_NODE, f"was stopped from outside ({name})"
    return ExitCode.INTERNAL, f"crashed ({name})"


def _tail(log: Path) -> str:
    """The last lines of a log, however long it is."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 64 * 1024, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_TAIL_LINES:])
