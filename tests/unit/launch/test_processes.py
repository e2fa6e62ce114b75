"""Processes below guards: started, watched, and gone with everything that they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.nodes.processes import End, ProcessSet, ProcessSpec

PATIENCE_SECONDS = 30.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE_SECONDS} s for {what}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def spec(folder: Path, rank: int, program: str) -> ProcessSpec:
    command = (sys.executable, "-c", program)
    return ProcessSpec(rank, command, dict(os.environ), folder, folder / "logs" / f"{rank}.log")


def start(folder: Path, *programs: str) -> ProcessSet:
    processes = ProcessSet()
    processes.start([spec(folder, rank, program) for rank, program in enumerate(programs)])
    return processes


def all_ended(processes: ProcessSet, count: int) -> dict[int, End]:
    wait_for(lambda: len(processes.ended()) == count, "all processes to end")
    return processes.ended()


def test_exit_codes_signals_and_logs(tmp_path: Path) -> None:
    processes = start(
        tmp_path,
        "print('out'); import sys; print('err', file=sys.stderr); sys.exit(14)",
        "import os; os.kill(os.getpid(), 11)",
        "pass",
        "import os; os.kill(os.getpid(), 9)",
    )
    ends = all_ended(processes, 4)
    assert {rank: end.code for rank, end in ends.items()} == {0: 14, 1: -signal.SIGSEGV, 2: 0, 3: -signal.SIGKILL}
    assert not any(end.told for end in ends.values())
    assert sorted((tmp_path / "logs" / "0.log").read_text().split()) == ["err", "out"]


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    processes = ProcessSet()
    processes.start([ProcessSpec(0, ("/no/such/program",), {}, tmp_path, tmp_path / "0.log")])
    assert all_ended(processes, 1)[0].code == 127
    assert (tmp_path / "0.log").read_text() == "/no/such/program: No such file or directory\n"


def test_term_reaches_the_command(tmp_path: Path) -> None:
    processes = start(
        tmp_path,
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(17))\n"
        "print('ready', flush=True)\nsignal.pause()",
    )
    wait_for(lambda: "ready" in (tmp_path / "logs" / "0.log").read_text(), "the program")
    processes.terminate()
    end = all_ended(processes, 1)[0]
    assert (end.code, end.told) == (17, True)


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# a helper in a session of its own, whose parent ends at once: nobody's child
code = ("import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True); print(p.pid, flush=True)")
subprocess.run([sys.executable, '-c', code])
print(os.getpid(), flush=True)
time.sleep(600)
"""


def pids_in(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.exists() else []


def test_kill_ends_also_what_ignores_term_and_what_ran_away(tmp_path: Path) -> None:
    processes = start(tmp_path, STUBBORN)
    log = tmp_path / "logs" / "0.log"
    wait_for(lambda: len(pids_in(log)) == 2, "the program")
    processes.terminate()
    processes.kill()
    assert all_ended(processes, 1)[0].code == -signal.SIGKILL
    assert not any(alive(pid) for pid in pids_in(log))


def test_helpers_do_not_outlive_a_command_that_ends(tmp_path: Path) -> None:
    processes = start(tmp_path, STUBBORN.replace("time.sleep(600)\n", "sys.exit(3)\n"))
    assert all_ended(processes, 1)[0].code == 3
    assert len(pids := pids_in(tmp_path / "logs" / "0.log")) == 2
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_owner(tmp_path: Path, number: int) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from launch.nodes.processes import ProcessSet, ProcessSpec
folder = Path({str(tmp_path)!r})
processes = ProcessSet()
processes.start([ProcessSpec(r, (sys.executable, "-c", {STUBBORN!r}), dict(os.environ), folder, folder / f"{{r}}.log")
                 for r in range(2)])
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program])
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    wait_for(lambda: all(len(pids_in(log)) == 2 for log in logs), "both programs")
    owner.send_signal(number)
    owner.wait()
    pids = [pid for log in logs for pid in pids_in(log)]
    wait_for(lambda: not any(alive(pid) for pid in pids), "the programs to be gone")


def test_the_command_dies_with_its_reaper(tmp_path: Path) -> None:
    """Ray's workers kill their children, which are the guards, when they end."""
    processes = start(tmp_path, STUBBORN)
    log = tmp_path / "logs" / "0.log"
    wait_for(lambda: len(pids_in(log)) == 2, "the program")
    os.kill(processes.pids()[0], signal.SIGKILL)
    assert all_ended(processes, 1)[0].code == -signal.SIGKILL
    wait_for(lambda: not any(alive(pid) for pid in pids_in(log)), "the program and its helper to be gone")
