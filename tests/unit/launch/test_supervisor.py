"""The supervisor and its verdicts, with real processes and no Ray."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brt_dist.errors import ExitCode
from brt_dist.failure import Failure
from brt_dist.run_directory import AttemptDirectory, RunDirectory
from launch.nodes.processes import End, ProcessSet, ProcessSpec
from launch.run.attempt_record import read_attempt
from launch.supervision.signals import StopRequests
from launch.supervision.supervisor import Patience, Supervisor
from launch.supervision.verdict import Verdict, judge, verdict_of

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
folder = Path({folder!r})
"""


class LocalRanks(ProcessSet):
    """Ranks of this machine, one program each."""

    def __init__(self, *programs: str) -> None:
        super().__init__()
        self._programs = programs

    def start(self, command: tuple[str, ...], directory: Path, folder: Path) -> None:  # type: ignore[override]
        super().start(
            [
                ProcessSpec(
                    rank,
                    (
                        *command,
                        PRELUDE.format(folder=str(folder)) + program,
                    ),
                    {**os.environ, "RANK": str(rank)},
                    directory,
                    AttemptDirectory(folder).log(rank),
                )
                for rank, program in enumerate(self._programs)
            ]
        )


WAITS = "(folder / f'{os.environ[\"RANK\"]}').touch(); time.sleep(600)"
SAVES = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(17)); " + WAITS
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
QUICK = Patience(look=0.02, failed=0.5, saving=0.5, last=60.0)  # ranks that end well may end apart


def supervise(run: Path, *programs: str, patience: Patience = QUICK, **options: Any) -> Verdict:
    ranks = LocalRanks(*programs)
    stop = options.pop("stop", None) or StopRequests()
    command = (sys.executable, "-c")
    return Supervisor(run, ranks, len(programs), lambda _: command, stop, patience=patience, **options).run()


def test_attempts_are_numbered_and_recorded(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).next_attempt() == 1
    assert supervise(tmp_path, "pass", "pass", facts={"host": "here"}) == Verdict(ExitCode.FINISHED, "finished")
    assert supervise(tmp_path, "sys.exit(17)", "pass").exit_code == ExitCode.PREEMPTED
    assert RunDirectory(tmp_path).attempts() == [1, 2]
    first = read_attempt(tmp_path, 1)
    assert first.host == "here" and first.exit_codes == {"0": 0, "1": 0} and first.verdict == "finished"
    assert first.start and first.end and first.start <= first.end
    assert read_attempt(tmp_path, 2).exit_codes == {"0": 17, "1": 0}


def test_a_failure_ends_the_others(tmp_path: Path) -> None:
    fails = "print('a'); print('why')\nwhile not (folder / '0').exists(): time.sleep(0.01)\nsys.exit(13)"
    verdict = supervise(tmp_path, IGNORES, fails, "time.sleep(600)")
    assert verdict.exit_code == ExitCode.OUT_OF_MEMORY
    assert (verdict.failed_rank, verdict.detail) == (1, "a\nwhy")
    assert read_attempt(tmp_path, 1).exit_codes == {"0": -signal.SIGKILL, "1": 13, "2": -signal.SIGTERM}


def test_a_rank_that_does_not_end_with_the_others_hangs(tmp_path: Path) -> None:
    verdict = supervise(
        tmp_path,
        "pass",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        patience=replace(QUICK, last=0.5),
    )
    assert verdict.exit_code == ExitCode.HUNG
    assert verdict.reason == "rank 1 did not exit although the others had"


@pytest.mark.parametrize(
    ("program", "signals", "expected"),
    [(SAVES, 1, ExitCode.PREEMPTED), (WAITS, 1, ExitCode.INTERRUPTED), (IGNORES, 2, ExitCode.INTERRUPTED)],
    ids=["saves", "does not save", "ignores the first"],
)
def test_stopping(tmp_path: Path, program: str, signals: int, expected: ExitCode) -> None:
    told: list[str] = []
    sent: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with StopRequests() as stop:
        stop.counting = True

        def interrupt() -> None:
            ready = all((tmp_path / "attempts" / "001" / rank).exists() for rank in "01")
            if ready and len(sent) < signals:
                sent.append(signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        # So patient that only the second signal can end those that ignore the first.
        patience = Patience(look=0.02, failed=60.0, saving=60.0, last=60.0)
        verdict = supervise(
            tmp_path, program, program, patience=patience, stop=stop, on_look=interrupt, tell=told.append
        )
    assert verdict.exit_code == expected
    assert len(told) == 1 and "again to quit without saving" in told[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launcher_error_is_recorded_and_raised(tmp_path: Path) -> None:
    def break_down() -> None:
        raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError):
        supervise(tmp_path, "time.sleep(600)", on_look=break_down)
    record = read_attempt(tmp_path, 1)
    assert (record.verdict, record.reason) == ("internal", "the display broke")


@pytest.mark.parametrize(("together", "expected"), [(3600.0, 1), (0.0, 3)])
def test_one_wish_that_comes_several_times_is_one(together: float, expected: int) -> None:
    with StopRequests(together) as stop:
        stop.counting = True
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.count == expected


def test_a_signal_before_ranks_run_interrupts(tmp_path: Path) -> None:
    with StopRequests(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def report(folder: Path, rank: int, at: float, message: str, exit_code: int = 1, traceback: str = "") -> None:
    content = {"rank": rank, "host": "h", "time": at, "type": "E", "message": message}
    path = folder / f"rank_{rank:03d}.error.json"
    path.write_text(json.dumps({**content, "exit_code": exit_code, "traceback": traceback}))


def test_the_earliest_report_counts_not_the_earliest_end(tmp_path: Path) -> None:
    report(tmp_path, 0, 11.0, "lost the connection")
    report(tmp_path, 1, 10.0, "out of memory", 13, "Traceback\n  E: out of memory\n")
    verdict = judge({0: End(0, 1, 11.5, False), 1: End(1, 13, 12.5, False)}, tmp_path, stop_asked=False)
    assert (verdict.exit_code, verdict.reason) == (ExitCode.OUT_OF_MEMORY, "rank 1 on h failed: E: out of memory")
    assert (verdict.failed_rank, verdict.detail) == (1, "Traceback\n  E: out of memory")


def test_a_killed_rank_comes_before_the_peers_that_miss_it(tmp_path: Path) -> None:
    report(tmp_path, 0, 10.0, "lost the connection")
    verdict = judge({0: End(0, 1, 10.9, False), 1: End(1, -9, 10.1, False)}, tmp_path, stop_asked=False)
    assert verdict.exit_code == ExitCode.LOST_NODE
    assert verdict.reason.startswith("rank 1 was killed (SIGKILL)")


def test_what_ends_because_it_was_told_to_is_no_cause(tmp_path: Path) -> None:
    report(tmp_path, 0, 9.0, "told")
    ends = {0: End(0, 1, 9.0, True), 1: End(1, 99, 10.0, False), 2: End(2, 17, 11.0, True)}
    verdict = judge(ends, tmp_path, stop_asked=False)
    assert (verdict.failed_rank, verdict.exit_code) == (1, ExitCode.INTERNAL)
    assert verdict.reason == "rank 1 exited with code 99 without a report"


def test_a_broken_report_and_a_long_log(tmp_path: Path) -> None:
    (tmp_path / "rank_000.error.json").write_text('{"rank": 0, "mess')
    AttemptDirectory(tmp_path).log(0).write_bytes(b"\xff noise\n" * 20_000 + b"the end\n")
    verdict = judge({0: End(0, 1, 1.0, False)}, tmp_path, stop_asked=False)
    assert verdict.detail.endswith("the end") and len(verdict.detail.splitlines()) == 20


def test_the_supervisor_records_what_the_rank_could_not(tmp_path: Path) -> None:
    verdict = supervise(tmp_path, "print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "pass")
    attempt = RunDirectory(tmp_path).attempt(1)
    left = Failure.read(attempt.failure(0))
    assert left == verdict.failure and left is not None
    assert (left.code, left.rank, left.traceback) == (ExitCode.LOST_NODE, 0, "last words")
    assert left.summary.startswith("rank 0 was killed (SIGKILL)")
    assert not attempt.failure(1).exists()
    record = read_attempt(tmp_path, 1)
    assert record.failure == left.to_json() and verdict_of(record.to_json()) == verdict


def test_what_a_rank_recorded_itself_is_not_written_again(tmp_path: Path) -> None:
    own = Failure(ExitCode.DIVERGED, "loss nan", 1, "here", 12, 10.0, "DivergedError")
    text = json.dumps(own.to_json())
    program = f"open(folder / 'rank_001.error.json', 'w').write({text!r}); sys.exit(14)"
    verdict = supervise(tmp_path, "time.sleep(600)", program)
    assert verdict.failure == own and verdict.reason == "rank 1 on here failed: DivergedError: loss nan"
    assert RunDirectory(tmp_path).attempt(1).failure(1).read_text() == text
    assert verdict.failed_rank == 1 and verdict.detail == "loss nan"


def test_a_record_of_an_older_version_is_a_verdict() -> None:
    old = {"exit_code": 13, "reason": "rank 1 failed", "failed_rank": 1, "detail": "why", "verdict": "out_of_memory"}
    verdict = verdict_of(old)
    assert (verdict.exit_code, verdict.failed_rank, verdict.detail) == (ExitCode.OUT_OF_MEMORY, 1, "why")
    finished = {"exit_code": 0, "reason": "finished", "failed_rank": None, "detail": "", "verdict": "finished"}
    assert verdict_of(finished) == Verdict(ExitCode.FINISHED, "finished")
