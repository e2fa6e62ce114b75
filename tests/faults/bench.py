"""A small run on this machine to inject faults into, and its measurements."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from brt_dist.event_log import events_of
from brt_dist.events import AttemptEvent, Event, StepEvent
from launch.run.attempt_record import AttemptRecord, read_attempts

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 400.0
STEPS, EVERY, AT = 60, 10, 25  # of a run; between checkpoints; when the fault comes
STEP_SECONDS = 0.05
CONFIG = """\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1],
  dropout: 0.1}}
data: {{dataset: {dataset}, segment: 16, streams: 4}}
parallel: {{data: 2}}
optimizer: {{warmup_steps: 2}}
run: {{name: faults, directory: {run}, steps: {steps}, precision: fp32, device: cpu, checkpoint_every: {every},
  tracking: {{enabled: false}}}}
launch: {{recovery: {{pause_seconds: 0.5}}}}
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_SECONDS:g} s for {what}")
        time.sleep(0.05)


E = TypeVar("E", bound=Event)


@dataclass
class Run:
    """A `brt train` in a separate process."""

    folder: Path
    process: "subprocess.Popen[str]"
    log: Path

    def events(self, kind: type[E], attempt: int | None = None) -> list[E]:
        return [event for event in events_of(self.folder, kind) if attempt in (None, event.attempt)]

    def last_step(self) -> int:
        return max((event.step for event in self.events(StepEvent)), default=0)

    def reach(self, step: int) -> None:
        wait_for(lambda: self.last_step() >= step or self.process.poll() is not None, f"step {step}")
        if self.process.poll() is not None:
            raise AssertionError(f"ended before step {step}:\n{self.said()}")

    def finish(self) -> int:
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end:\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text()

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank of the newest attempt."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            module = [word for word in words[1:4] if word not in ("-P", "-m")][:1]  # not of the reaper above it
            if module in (["brt_dist.worker"], ["tests.faults.worker"]) and str(self.folder) in words:
                try:
                    if process.environ().get("RANK") == str(number):
                        return process
                except psutil.Error:
                    continue
        raise AssertionError(f"no rank {number}")

    def below(self, name: str) -> list[psutil.Process]:
        """Processes below the launcher whose command line begins with, or holds, `name`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()[:2]):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def losses(self) -> dict[int, float]:
        return {event.step: event.loss or 0.0 for event in self.events(StepEvent)}

    def records(self) -> list[AttemptRecord]:
        return read_attempts(self.folder)


class Bench:
    """Makes runs below a folder, all of one dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        corpus = folder / "corpus"
        corpus.mkdir()
        for number in range(6):
            (corpus / f"{number}.txt").write_text(f"This is document {number}. " * 40)
        build = [sys.executable, "-m", "launch.cli", "data", "build", str(corpus), "--out", str(folder / "dataset")]
        subprocess.run([*build, "--tokenizer", "bytes", "--workers", "0"], check=True, cwd=ROOT, capture_output=True)

    def start(
        self,
        name: str,
        *settings: str,
        fault: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        around: Callable[..., list[str]] = lambda *words: [*words],
        directory: Path | None = None,
    ) -> Run:
        """Start or continue the run `name`; around: puts words before the command (a namespace)."""
        folder = directory or self.folder / name
        config = self.folder / f"{name}.yaml"
        config.write_text(CONFIG.format(dataset=self.folder / "dataset", run=folder, steps=STEPS, every=EVERY))
        log = self.folder / f"{name}.log"
        faults = {"step_seconds": STEP_SECONDS, **(fault or {})}
        command = [sys.executable, "-m", "tests.faults.train", str(config), *settings]
        with open(log, "a") as output:
            process = subprocess.Popen(
                around(*command),
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "BRT_FAULT": json.dumps(faults), **(environment or {})},
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        return Run(folder, process, log)

    def undisturbed(self, *settings: str) -> dict[int, float]:
        run = self.start("undisturbed", *settings)
        if run.finish() != 0:
            raise AssertionError(run.said())
        return run.losses()


@dataclass
class Outcome:
    """What a fault cost.

    verdicts: of the attempts, and the decisions.  lost: steps that were trained again.  seconds: from the fault to
    the next step.  largest: difference of any loss from the undisturbed run.
    """

    verdicts: list[str]
    lost: int
    seconds: float
    largest: float

    @classmethod
    def of(cls, run: Run, at: float, truth: dict[int, float], left_out: Sequence[int] = ()) -> "Outcome":
        """at: time of the fault.  truth: losses of the undisturbed run.  left_out: steps that are not compared."""
        verdicts = [
            " → ".join(filter(None, (record.verdict or "no verdict", record.decision.get("action"))))
            for record in run.records()
        ]
        before = [event for event in run.events(StepEvent) if event.time <= at]
        again = [event for event in run.events(AttemptEvent) if event.time > at]
        first = [event for event in run.events(StepEvent) if again and event.time > again[0].time]
        reached = max((event.step for event in before), default=0)
        lost = max(reached - again[0].start_step, 0) if again else 0
        losses = run.losses()
        if {*losses} | {*left_out} != {*truth} | {*left_out}:
            raise AssertionError(f"steps {sorted({*truth} - {*losses})} are missing")
        off = max(abs(losses[step] - truth[step]) for step in truth if step not in left_out and step in losses)
        return cls(verdicts, lost, first[0].time - at if first else 0.0, off)
