"""The attempts of one `brt train`, one after another, each in its own process, until one succeeds or is the last."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brt_dist.config.schema import Config
from brt_dist.errors import BrtError, ExitCode, PlatformError
from brt_dist.failure import Failure, exit_code
from brt_dist.run_directory import RunDirectory
from brt_dist.starting import BEGAN
from brt_dist.training.adjustments import Adjustments
from launch.nodes.listening import address_towards, is_set, listening_on
from launch.nodes.processes import REAPER
from launch.run.attempt_record import AttemptRecord, read_attempt
from launch.run.history import History
from launch.run.python import module_command
from launch.supervision.attempt import AttemptRequest
from launch.supervision.recovery import Decision, Recovery
from launch.supervision.signals import StopRequests
from launch.supervision.verdict import Verdict, verdict_of

_LOOK_SECONDS = 0.1


class Attempts:
    """Runs attempts of a run directory whose config.yaml is written.

    worker, ray_address: see AttemptRequest.  on_look: called again and again once the ranks of an
    attempt are started.  began: when the first attempt did, in unix seconds; None: now.
    """

    def __init__(
        self,
        config: Config,
        worker: tuple[str, ...],
        ray_address: str | None,
        stop: StopRequests,
        tell: Callable[[str], None],
        on_look: Callable[[], None],
        began: float | None = None,
    ) -> None:
        self._worker, self._address, self._stop = worker, ray_address, stop
        self._tell, self._on_look = tell, on_look
        self._run: Path = config.run.directory
        self._began = began
        self._recovery = Recovery(config.launch.recovery, History.read(self._run).saved_step)

    def run(self) -> Verdict:
        """Run attempts until one succeeds or no other may follow.

        Raises:
            BrtError: the first could not be started.
        """
        self._stop.counting = True
        again = False
        while True:
            number = RunDirectory(self._run).next_attempt()
            answer = self._attempt(number, again)
            if "error" in answer and not again:
                raise _error(answer)
            verdict = _verdict(answer)
            decision = self._decide(verdict, number)
            if decision.action == "stop":
                return verdict
            self._tell(f"attempt {number} failed: {verdict.reason}")
            self._tell(decision.told)
            if self._paused(decision.pause):
                return Verdict(
                    ExitCode.INTERRUPTED, "stopped between two attempts; training resumes from the last checkpoint"
                )
            again = True

    def _attempt(self, number: int, again: bool) -> dict[str, Any]:
        """The answer of the attempt's process, which runs below a reaper that kills whatever it leaves behind."""
        request = AttemptRequest(str(self._run), self._worker, self._address, again)
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(REAPER),
                *module_command("launch.supervision.attempt", request.to_json()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(),
            start_new_session=True,  # Ctrl-C at the terminal is passed on by this process
        )
        told, directory = 0, RunDirectory(self._run)
        try:
            while process.poll() is None:
                if self._stop.count > told:
                    told += 1
                    process.terminate()
                if number in directory.attempts():
                    self._on_look()
                time.sleep(_LOOK_SECONDS)
            said = process.stdout.read() if process.stdout else ""
        finally:
            if process.stdin:
                process.stdin.close()
            process.wait()
        try:
            answer = json.loads(said.splitlines()[-1])
        except (IndexError, ValueError):
            if told:
                verdict = Verdict(ExitCode.INTERRUPTED, "stopped before training started")
            else:
                reason = f"the process that supervises the ranks {_ended(process.returncode)}"
                is_full = process.returncode == ExitCode.OUT_OF_MEMORY  # as the reaper reported
                code = ExitCode.OUT_OF_MEMORY if is_full else ExitCode.LOST_NODE
                verdict = Verdict.of(Failure(code, reason, time=time.time()))
            answer = {"verdict": verdict.to_json()}
        return answer if isinstance(answer, dict) else {}

    def _environment(self) -> dict[str, str]:
        """The environment of the attempt's process.  Ray's server in it must listen only towards the cluster."""
        environment = {**os.environ, BEGAN: f"{time.time() if self._began is None else self._began:.3f}"}
        self._began = None
        joins = self._address is not None and self._address != "local"
        address = address_towards(self._address) if joins and self._address else None
        if address is None or is_set(environment):
            return environment
        try:
            return listening_on(address, environment)
        except PlatformError as error:
            self._tell(f"warning: {error}; Ray's server in this process listens on all interfaces")
            return environment

    def _decide(self, verdict: Verdict, number: int) -> Decision:
        history = History.read(self._run)
        decision = self._recovery.decide(
            verdict,
            saved=history.saved_step,
            step=history.last_step,
            adjustments=Adjustments.load(self._run),
        )
        if self._stop.count and decision.action != "stop":
            decision = Decision("stop", "a stop was requested")
        if decision.adjustments is not None:
            decision.adjustments.save(self._run)
        self._record(number, verdict, decision)
        return decision

    def _record(self, number: int, verdict: Verdict, decision: Decision) -> None:
        """Add the decision to attempt.json, and the verdict if the attempt's process did not write it."""
        directory = RunDirectory(self._run)
        attempt = directory.attempt(number)
        if number not in directory.attempts():
            if verdict.exit_code == ExitCode.INTERRUPTED:
                return  # no rank was started
            attempt.path.mkdir(parents=True)
        now = time.time()
        known = {"start": now, "end": now, **verdict.to_json(), **read_attempt(self._run, number).to_json()}
        AttemptRecord.of(number, {**known, "decision": decision.to_json()}).write(attempt)

    def _paused(self, seconds: float) -> bool:
        """Wait; true if the user asks to stop in the meantime."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.count:
            time.sleep(_LOOK_SECONDS)
        return self._stop.count > 0


def _verdict(answer: dict[str, Any]) -> Verdict:
    if "verdict" in answer:
        return verdict_of(answer["verdict"])
    return Verdict.of(
        Failure(exit_code(answer.get("exit_code")), str(answer.get("error", "no answer")), time=time.time())
    )


def _error(answer: dict[str, Any]) -> BrtError:
    error = BrtError(answer["error"])
    error.exit_code = ExitCode(answer["exit_code"])
    return error


def _ended(code: int) -> str:
    """How a process ended that returned no answer."""
    if code >= 0:
        return f"ended with code {code}; its own error is above"
    killed = signal.Signals(-code).name
    return f"was killed ({killed})" + ("; probably out of memory" if killed == "SIGKILL" else "")
