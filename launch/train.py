"""What `brt train` does: config, rules, run directory, tracking, nodes, ranks, and a verdict at the end."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.loading import Resolved, load
from brt_dist.config.rules import DatasetFacts, check
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode
from launch.events import History, read_events
from launch.facts import attempt_facts
from launch.progress import Progress
from launch.run_directory import absolute, claimed, refuse_other_run, write_config
from launch.signals import StopRequests
from launch.supervisor import Supervisor
from launch.tracking.process import SyncerProcess, finish_command
from launch.tracking.uri import page_command
from launch.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console

    from launch.gang import Gang

WORKER = (sys.executable, "-m", "brt_dist.worker")


@dataclass(frozen=True)
class Outcome:
    """run: its directory; verdict: of the attempt; tracked: all of it is in MLflow, none if tracking is off."""

    run: Path
    verdict: Verdict
    config: Config
    tracked: bool | None
    plot: Path | None

    def to_json(self) -> dict[str, Any]:
        history = History.of(read_events(self.run))
        tracking = self.config.run.tracking
        return {
            "run": str(self.run),
            **self.verdict.to_json(),
            "step": max(history.steps, default=0),
            "last_step": history.latest_step(),
            "evaluations": [history.evaluations[key] for key in sorted(history.evaluations)],
            "checkpoint": history.checkpoints[max(history.checkpoints)]["path"] if history.checkpoints else None,
            "plot": str(self.plot) if self.plot else None,
            "mlflow": page_command(tracking, self.run) if tracking.enabled else None,
            "tracked": self.tracked,
        }


def train(
    sources: Sequence[Path | str],
    overrides: Sequence[str],
    console: "Console",
    worker: Sequence[str] = WORKER,
    ray_address: str | None = None,
) -> Outcome:
    """Run one attempt and say how it ended.  BrtError: it could not be started.

    console: standard error.  worker: command of a rank, to which `RUN --attempt N` is added.  ray_address: in place of
    launch.ray_address, for this attempt alone.
    """
    resolved = load(sources, overrides)
    resolved = replace(resolved, config=absolute(resolved.config))
    config, run = resolved.config, resolved.config.run.directory
    check(config)
    check(config, *dataset_facts(config))
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests())
        if stack.enter_context(claimed(run)):
            refuse_other_run(run, config)
        try:
            verdict, tracked = _attempt(resolved, stop, console, tuple(worker), ray_address)
        except KeyboardInterrupt:
            verdict, tracked = Verdict(ExitCode.INTERRUPTED, "stopped before anything was trained"), None
        return Outcome(run, verdict, config, tracked, _plot(config, run))


def dataset_facts(config: Config) -> tuple[DatasetFacts, DatasetFacts | None]:
    """Facts of the training and the validation dataset.  DataError: one of them cannot be opened."""
    from brt_dist.training.datasets import open_training, open_validation

    with open_training(config.data) as training:
        facts = DatasetFacts.of(training, config)
    if (validation := open_validation(config.data)) is None:
        return facts, None
    with validation:
        return facts, DatasetFacts.of(validation)


def _attempt(
    resolved: Resolved, stop: StopRequests, console: "Console", worker: tuple[str, ...], ray_address: str | None
) -> tuple[Verdict, bool | None]:
    from launch.backends.local import ray_cluster
    from launch.gang import Gang

    config, run = resolved.config, resolved.config.run.directory
    write_config(run, resolved)
    console.print(f"run directory {run}", markup=False, highlight=False, soft_wrap=True)
    syncer: SyncerProcess | None = None
    try:
        address = ray_address or config.launch.ray_address
        where = address or "this machine"
        console.print(f"starting Ray on {where}", markup=False, highlight=False, soft_wrap=True)
        with ray_cluster(address), Gang(config) as gang:
            stop.install()  # Ray has put its own handlers in the way
            if config.launch.preflight:
                _preflight(gang, config, console)
            progress = Progress(run, config.run.steps, console)
            supervisor = Supervisor(
                run,
                gang,
                config.parallel.world_size,
                lambda attempt: (*worker, str(run), "--attempt", str(attempt)),
                stop,
                facts={**attempt_facts(), "nodes": [node.host for node in gang.nodes]},
                on_look=progress.update,
                tell=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            )
            # Only now: the attempt is what it reports on, and its start must not slow that of Ray.
            syncer = SyncerProcess(run) if config.run.tracking.enabled else None
            stop.counting = True
            try:
                verdict = supervisor.run()
            finally:
                progress.update()
                progress.close()
        _plot(config, run)
        return verdict, _finish(syncer, run, stop, console)
    finally:
        if syncer is not None:
            syncer.kill()


def _preflight(gang: "Gang", config: Config, console: "Console") -> None:
    from launch.doctor.examine import line, preflight, refuse

    found = preflight(gang, config, config.run.directory)
    refuse(found)
    for finding in found:
        if finding.status == "warning":
            console.print(f"warning: {line(finding)}", markup=False, highlight=False, soft_wrap=True)


def _finish(syncer: SyncerProcess | None, run: Path, stop: StopRequests, console: "Console") -> bool | None:
    if syncer is None:
        return None
    console.print("sending the last of it to MLflow", markup=False, highlight=False)
    stop.counting = False  # Ctrl-C here means: do not wait
    try:
        done = syncer.finish()
    except KeyboardInterrupt:
        done = False
    if not done:
        console.print(
            f"not everything reached MLflow (see {run / 'tracking' / 'syncer.log'}); to send the rest later:\n"
            f"  {finish_command(run)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return done


def _plot(config: Config, run: Path) -> Path | None:
    from launch.plots import plot_loss

    return plot_loss(run, config.run.name)
