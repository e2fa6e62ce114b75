"""One function for each fault on one machine: inject it into a run, wait for the end, report what it cost."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from brt_dist.errors import ExitCode
from brt_dist.events import DivergedEvent, SkipEvent, StepEvent, StragglerEvent
from tests.faults.bench import AT, Bench, Outcome, Run

Scenario = Callable[[Bench, dict[int, float]], Outcome]


def expect(run: Run, code: ExitCode = ExitCode.FINISHED) -> None:
    found = run.finish()
    if found != code:
        raise AssertionError(f"ended with {found}, not {int(code)}:\n{run.said()}")


def rank_killed(bench: Bench, truth: dict[int, float]) -> Outcome:
    run = bench.start("rank_killed")
    run.reach(AT)
    at = time.time()
    run.rank(1).kill()
    expect(run)
    return Outcome.of(run, at, truth)


def rank_stopped(bench: Bench, truth: dict[int, float]) -> Outcome:
    """SIGSTOP: all ranks hang.  The stacks of the others are in their logs, and the stopped rank is named."""
    run = bench.start("rank_stopped", "launch.recovery.hang_seconds=3")
    run.reach(AT)
    at = time.time()
    run.rank(1).suspend()
    expect(run)
    first = run.records()[0]
    if "rank 1 on" not in first.reason or "is stopped (SIGSTOP)" not in first.reason:
        raise AssertionError(f"the stopped rank is not named: {first.reason}")
    stacks = (run.folder / "attempts" / "001" / "rank_000.log").read_text()
    if "Current thread" not in stacks or "train_step" not in stacks:
        raise AssertionError(f"no stack of rank 0 in its log:\n{stacks[-2000:]}")
    return Outcome.of(run, at, truth)


def agent_killed(bench: Bench, truth: dict[int, float]) -> Outcome:
    """The Ray actor that starts and watches the ranks of a node; its ranks end with it."""
    return _without(bench.start("agent_killed", "launch.ray_address=local"), "ray::NodeAgent", truth)


def supervisor_killed(bench: Bench, truth: dict[int, float]) -> Outcome:
    """Nothing is left running, and the same command continues."""
    run = bench.start("supervisor_killed")
    run.reach(AT)
    everything = psutil.Process(run.process.pid).children(recursive=True)
    at = time.time()
    run.process.kill()
    run.process.wait()
    alive = psutil.wait_procs([process for process in everything if _is_rank(process)], timeout=60)[1]
    if alive:
        raise AssertionError(f"ranks outlive their supervisor: {alive}")
    run = bench.start("supervisor_killed")
    expect(run)
    return Outcome.of(run, at, truth)


def ray_head_killed(bench: Bench, truth: dict[int, float]) -> Outcome:
    """gcs_server, which knows all actors.  Slow steps, so that its loss is noticed before the run is over."""
    return _without(
        bench.start("ray_head_killed", "launch.ray_address=local", fault={"step_seconds": 0.5}), "gcs_server", truth
    )


def _without(run: Run, program: str, truth: dict[int, float]) -> Outcome:
    """Kill the one process below the launcher that runs `program`."""
    run.reach(AT)
    (process,) = run.below(program)
    at = time.time()
    process.kill()
    expect(run)
    return Outcome.of(run, at, truth)


def preempted(bench: Bench, truth: dict[int, float]) -> Outcome:
    """SIGTERM to one rank, as on a node that is preempted: all save at the same step.  Then the same command."""
    run = bench.start("preempted")
    run.reach(AT)
    at = time.time()
    run.rank(1).terminate()
    expect(run, ExitCode.PREEMPTED)
    run = bench.start("preempted")
    expect(run)
    return Outcome.of(run, at, truth)


def gradient_of_nan(bench: Bench, truth: dict[int, float]) -> Outcome:
    """NaN in one rank whenever step AT comes: back to the checkpoint, and on without that step."""
    run = bench.start("gradient_of_nan", "launch.recovery.diverged=skip", fault={"nan": [1, AT]})
    expect(run)
    (diverged,) = run.events(DivergedEvent)
    # After a skipped step the run differs; before it, it must be the same.
    outcome = Outcome.of(run, diverged.time, truth, left_out=range(AT, max(truth) + 1))
    (skip,) = run.events(SkipEvent)
    if skip.step != AT:
        raise AssertionError(f"step {skip.step} was left out")
    return outcome


def gradient_of_nan_left_out(bench: Bench, truth: dict[int, float]) -> Outcome:
    """The same with run.guards.nonfinite=skip: no rank stops."""
    run = bench.start("nan_left_out", "run.guards.nonfinite=skip", fault={"nan": [1, AT]})
    expect(run)
    (skip,) = run.events(SkipEvent)
    outcome = Outcome.of(run, skip.time, truth, left_out=range(AT, max(truth) + 1))
    after = [event for event in run.events(StepEvent) if event.step == AT + 1]
    outcome.seconds = after[0].time - skip.time
    return outcome


def slow_rank(bench: Bench, truth: dict[int, float]) -> Outcome:
    """The slow rank is named; nothing is restarted."""
    run = bench.start("slow_rank", "run.guards.straggler_every=10", fault={"slow": [1, 0.2]})
    expect(run)
    named = {event.rank for event in run.events(StragglerEvent)}
    if named != {1}:
        raise AssertionError(f"stragglers {named}")
    return Outcome.of(run, time.time(), truth)


def disk_full(bench: Bench, truth: dict[int, float]) -> Outcome:
    """The run's disk fills in mid-run: no half checkpoint is left; with space again the same command continues."""
    place = bench.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)], check=True)
    try:
        run = bench.start("disk_full", directory=place / "run")
        run.reach(AT)
        at = time.time()
        filler = place / "filler"
        with suppress(OSError), open(filler, "wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        code = run.finish()
        if code == ExitCode.FINISHED:
            raise AssertionError("the disk was not full")
        filler.unlink()
        run = bench.start("disk_full", directory=place / "run")
        expect(run)
        return Outcome.of(run, at, truth)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "tests.faults.worker" in process.cmdline()
    return False


ON_ONE_MACHINE: dict[str, tuple[str, Scenario]] = {
    "rank_killed": ("kill -9 of a rank", rank_killed),
    "rank_stopped": ("SIGSTOP of a rank (hang)", rank_stopped),
    "agent_killed": ("kill -9 of a node's agent", agent_killed),
    "supervisor_killed": ("kill -9 of the supervisor; the same command", supervisor_killed),
    "ray_head_killed": ("kill -9 of Ray's head (gcs_server)", ray_head_killed),
    "preempted": ("SIGTERM to one rank; the same command", preempted),
    "gradient_of_nan": ("NaN in one rank's gradient, `launch.recovery.diverged=skip`", gradient_of_nan),
    "nan_left_out": ("NaN in one rank's gradient, `run.guards.nonfinite=skip`", gradient_of_nan_left_out),
    "slow_rank": ("a rank that takes 0.2 s more for each step", slow_rank),
    "disk_full": ("disk full in the run directory; space freed, the same command", disk_full),
}
