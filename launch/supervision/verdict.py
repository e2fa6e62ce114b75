"""Why an attempt ended: from how its ranks ended to one verdict.  Pure but for reading the ranks' own reports."""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brt_dist.errors import ExitCode
from brt_dist.run_directory import AttemptDirectory
from launch.nodes.processes import End

_TAIL_LINES = 20
# A rank that leaves no report (killed, crashed in C) is seen to end by its peers before the launcher sees it.
_NO_REPORT_HEAD_START_SECONDS = 1.0
_CLEAN = (ExitCode.FINISHED, ExitCode.PREEMPTED)
# What a rank reports that misses another one; why that is gone, only the other knows.
_OF_PEERS = (ExitCode.LOST_NODE, ExitCode.HUNG)


@dataclass(frozen=True)
class Verdict:
    """exit_code: of the attempt; reason: one line; detail: the first error, of the rank that failed first."""

    exit_code: ExitCode
    reason: str
    failed_rank: int | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": int(self.exit_code), "verdict": self.exit_code.name.lower()}


def verdict_of(record: Mapping[str, Any]) -> Verdict:
    """Back from `Verdict.to_json`."""
    detail, rank = record.get("detail", ""), record.get("failed_rank")
    return Verdict(_exit_code(int(record["exit_code"])), str(record["reason"]), rank, str(detail))


def judge(ends: Mapping[int, End], folder: Path, stop_asked: bool) -> Verdict:
    """The verdict of an attempt whose ranks have all ended; `folder` holds their logs and reports.

    stop_asked: the user (or the scheduler) wanted it to end.
    """
    failed = [end for end in ends.values() if end.code not in _CLEAN]
    if not failed:
        if any(end.code == ExitCode.PREEMPTED for end in ends.values()):
            return Verdict(ExitCode.PREEMPTED, "stopped and saved; the same command goes on")
        return Verdict(ExitCode.FINISHED, "finished")
    untold = [end for end in failed if not end.told]
    if untold:
        return _first_failure(untold, {end.rank: _report(folder, end.rank) for end in failed}, folder)
    if stop_asked:
        return Verdict(ExitCode.INTERRUPTED, "stopped before it could save; the last checkpoint counts")
    names = ", ".join(str(end.rank) for end in failed)
    return Verdict(ExitCode.HUNG, f"rank {names} did not end although the others had", failed[0].rank)


def _first_failure(untold: list[End], reports: Mapping[int, dict[str, Any] | None], folder: Path) -> Verdict:
    """The verdict from what failed first; `untold` ended by themselves."""
    first = min(untold, key=lambda end: _order(end, reports[end.rank]))
    report = reports[first.rank]
    lost = [end for end in untold if end.code == ExitCode.LOST_NODE and reports[end.rank] is None]
    if lost and (report is None or report.get("exit_code") in _OF_PEERS):
        # A node is found to be gone later than its peers miss it.
        ranks = ", ".join(str(end.rank) for end in lost)
        return Verdict(ExitCode.LOST_NODE, f"the node of rank {ranks} was lost: its agent is gone", lost[0].rank)
    if report is not None:
        code = _exit_code(int(report.get("exit_code", ExitCode.INTERNAL)))
        where = f"rank {first.rank} on {report.get('host', '?')}"
        detail = report.get("traceback") or f"{report.get('message', '')}"
        return Verdict(
            code, f"{where} failed: {report.get('type')}: {report.get('message')}", first.rank, detail.rstrip()
        )
    tail = _tail(AttemptDirectory(folder).log(first.rank))
    code, how = _by_exit(first.code, tail)
    return Verdict(code, f"rank {first.rank} {how}", first.rank, tail)


def _order(end: End, report: Mapping[str, Any] | None) -> float:
    return end.time - _NO_REPORT_HEAD_START_SECONDS if report is None else float(report.get("time", end.time))


def _report(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        report = json.loads(AttemptDirectory(folder).failure(rank).read_text())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def _exit_code(code: int) -> ExitCode:
    return ExitCode(code) if code in ExitCode._value2member_map_ else ExitCode.INTERNAL


def _by_exit(code: int, tail: str) -> tuple[ExitCode, str]:
    if code >= 0:
        return _exit_code(code), f"ended with exit code {code} and left no report"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL:
        return ExitCode.LOST_NODE, f"was killed ({name}); if nobody did, the machine ran out of memory"
    if -code == signal.SIGABRT and "Watchdog caught collective operation timeout" in tail:
        return ExitCode.HUNG, "waited in vain for the others (see its log)"
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return ExitCode.LOST_NODE, f"was ended from outside ({name})"
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
