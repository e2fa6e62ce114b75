"""Sends a run to MLflow: `python -m launch.tracking.syncer RUN`.  A separate process, so that nothing waits for it.

It reads what the ranks append to RUN/metrics.jsonl and the agents to RUN/system, sends it in batches with the original
times, records its progress in RUN/tracking/state.json, and retries with growing pauses while the server is
unreachable.  With `--follow` it runs until its standard input is closed (when the launcher ends in any way); without,
it sends what there is and exits.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from brt_dist.config.loading import dump, load
from brt_dist.errors import BrtError, ExitCode
from brt_dist.event_log import EventReader
from brt_dist.events import AttemptEvent, CheckpointEvent, EndEvent, Event, SystemEvent
from brt_dist.failure import exit_code
from brt_dist.run_directory import RunDirectory
from launch.run.attempt_record import read_last_attempt
from launch.run.redact import redact
from launch.tracking import facts
from launch.tracking.client import refusal
from launch.tracking.health import HealthRecord
from launch.tracking.mlflow_run import MlflowRun
from launch.tracking.params import params, sizes
from launch.tracking.rows import Rows
from launch.tracking.state import SyncState
from launch.tracking.uri import fingerprint, tracking_uri

_LINES = 500  # events that are read at once
_POLL_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_STATUS = {ExitCode.FINISHED: "FINISHED", ExitCode.PREEMPTED: "KILLED", ExitCode.INTERRUPTED: "KILLED"}


class Syncer:
    """Brings the MLflow run up to date with the run directory, one batch at a time.

    Raises:
        ConfigError: the folder holds no run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._config = load(RunDirectory(run).config).config
        self._uri = tracking_uri(self._config.run.tracking, run)
        self._state = SyncState.load(run, fingerprint(self._uri))
        self._reader = EventReader(run, self._state.offset)
        self._mlflow: MlflowRun | None = None
        self._facts_reader = EventReader(run, kinds=(AttemptEvent, CheckpointEvent))
        self._told: list[Event] = []
        self._tags: dict[str, str] = {}  # as the server has them
        self._files: dict[str, str] = {}  # likewise, by name

    def step(self) -> bool:
        """Send a batch; false if there is nothing more to send.  Raises whatever MLflow raises."""
        mlflow = self._connected()
        if self._send_events(mlflow) or self._send_samples(mlflow):
            return True
        self._send_facts(mlflow)
        return False

    def finish(self) -> str:
        """Send the report, the plots and the final status; returns the id of the MLflow run."""
        mlflow = self._connected()
        directory = RunDirectory(self._run)
        for file, folder in ((directory.report, None), (directory.loss_plot, "plots")):
            if file.is_file():
                mlflow.log_file(file, folder)
        status, at = final_status(self._run)
        mlflow.end(status, at)
        return mlflow.id

    def _send_events(self, mlflow: MlflowRun) -> bool:
        self._reader.offset = self._state.offset
        events = self._reader.read(_LINES)
        rows = Rows(dict(self._state.sent), dict(self._state.carried), self._state.names)
        mlflow.log(rows.of(events))
        moved = self._reader.offset != self._state.offset
        if moved:
            # If killed before this line, the same rows are sent again with the same times; the server merges them.
            self._state.offset = self._reader.offset
            self._state.sent, self._state.carried = rows.sent, rows.carried
            self._state.save(self._run)
        return moved

    def _send_samples(self, mlflow: MlflowRun) -> bool:
        moved = False
        for path in RunDirectory(self._run).all_system_metrics():
            offset, count = self._state.samples.get(path.name, (0, 0))
            reader = EventReader(self._run, offset, path)
            samples = [event for event in reader.read(_LINES) if isinstance(event, SystemEvent)]
            if reader.offset != offset:
                mlflow.log(Rows(names=self._state.names).of_node(samples, path.stem, count))
                self._state.samples[path.name] = (reader.offset, count + len(samples))
                self._state.save(self._run)
                moved = True
        return moved

    def _send_facts(self, mlflow: MlflowRun) -> None:
        """Send what is not a curve and has changed: tags of the last attempt, tables, the plan."""
        if news := self._facts_reader.read():
            self._told += news
            mlflow.describe(sizes(self._config, self._told))
        now = facts.tags(self._run)
        if now != self._tags:
            mlflow.tag(now)
            self._tags = now
        for name, text in facts.files(self._run, self._told).items():
            if self._files.get(name) != text:
                mlflow.log_text(text, name)
                self._files[name] = text

    def _connected(self) -> MlflowRun:
        if self._mlflow is None:
            config = self._config
            mlflow = MlflowRun(self._uri, config, self._run, self._state)
            mlflow.describe(params(config))
            places = [("training", place) for place, _ in config.data.training]
            places += [("validation", config.data.validation)] if config.data.validation else []
            mlflow.log_datasets(places)
            mlflow.log_text(redact(dump(config)), "config.yaml")
            provenance = RunDirectory(self._run).provenance
            if provenance.is_file():  # not under torchrun
                mlflow.log_text(redact(provenance.read_text()), "provenance.json")
            self._mlflow = mlflow
        return self._mlflow


def final_status(run: Path) -> tuple[str, float | None]:
    """MLflow's status for how the last attempt ended, and when; KILLED if the launcher left no verdict."""
    record = read_last_attempt(run)
    if record is not None and record.end is not None:
        return _STATUS.get(exit_code(record.exit_code), "FAILED"), record.end
    ends = EventReader(run, kinds=(AttemptEvent, EndEvent)).read()
    if not ends or not isinstance(ends[-1], EndEvent):
        return "KILLED", None
    return _STATUS.get(exit_code(ends[-1].exit_code), "FAILED"), ends[-1].time  # torchrun: no supervisor


class _Owner:
    """The launcher at the other end of standard input; `gone` is set once it closes the pipe or ends."""

    def __init__(self, follow: bool, finish_seconds: float) -> None:
        self.gone = threading.Event()
        self._finish_seconds = finish_seconds
        if follow:
            threading.Thread(target=self._watch, daemon=True).start()
        else:
            self.gone.set()

    def _watch(self) -> None:
        while os.read(0, 4096):
            pass
        self.gone.set()
        time.sleep(self._finish_seconds)
        _say("out of time; the rest can be sent later")
        os._exit(ExitCode.ENVIRONMENT)  # the main thread may hang in a request


def synchronize(syncer: Syncer, owner: _Owner, health: HealthRecord) -> str:
    """Send until the owner is gone and everything is sent; returns the id of the MLflow run.

    Raises:
        BrtError: the owner is gone and the server rejects the credentials, so waiting is pointless.
    """
    pause = 1.0
    while True:
        last = owner.gone.is_set()  # before reading, so that everything written before the end is read
        try:
            while syncer.step():
                health.tell("sending")
            health.tell("sending")
            if last:
                return syncer.finish()
            pause = 1.0
            owner.gone.wait(_POLL_SECONDS)
        except BrtError:
            raise
        except Exception as error:  # whatever a server, a network or MLflow may raise
            refused = refusal(error)
            health.tell("refused" if refused else "away", refused or f"{type(error).__name__}: {error}")
            if refused and last:
                raise BrtError(f"not sent: {refused}") from None
            _say(f"not sent ({refused or f'{type(error).__name__}: {error}'}); retrying in {pause:g} s")
            time.sleep(min(pause, 5.0)) if last else owner.gone.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.tracking.syncer", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--follow", action="store_true", help="run until standard input is closed")
    parser.add_argument(
        "--finish-seconds", type=float, default=60.0, help="with --follow: longest time to finish after that"
    )
    options = parser.parse_args(arguments)
    # MLflow prints and logs the URIs it works with, on both.
    sys.stderr = sys.stdout = cast(TextIO, _Redacted(sys.stderr))
    if options.follow:
        os.nice(19)  # the ranks come first
    try:
        RunDirectory.existing(options.run)
        with _only_one(options.run):
            owner = _Owner(options.follow, options.finish_seconds)
            run_id = synchronize(Syncer(options.run), owner, HealthRecord(options.run))
    except BrtError as error:
        _say(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    _say(f"sent, MLflow run {run_id}")
    return int(ExitCode.FINISHED)


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = RunDirectory(run).syncer_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        held = lock.acquire()
    except Timeout:
        raise BrtError(f"another process is already sending {run}; nothing to do") from None
    with held:
        yield


class _Redacted:
    """Standard error without credentials, including what MLflow and others log there."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
