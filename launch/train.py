"""`brt train`: checks the config, claims the run directory, runs the attempts and returns a verdict."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.costs import warnings
from brt_dist.config.data_rules import DatasetFacts
from brt_dist.config.loading import Resolved, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode
from brt_dist.events import to_json
from brt_dist.run_directory import RunDirectory
from launch.doctor.before_start import check_before_start
from launch.doctor.fitting import laid_out, refuse_oversize
from launch.nodes.local_agents import needs_ray
from launch.run.changed_schedule import changed_schedule
from launch.run.claim import claimed
from launch.run.config_file import absolute, refuse_other_run, write_config
from launch.run.history import History
from launch.run.python import module_command
from launch.run.size_line import size_line
from launch.supervision.attempts import Attempts
from launch.supervision.signals import StopRequests
from launch.supervision.verdict import Verdict
from launch.tracking.health import Health
from launch.tracking.process import SyncerProcess, finish_command
from launch.tracking.uri import page_command, page_link

if TYPE_CHECKING:
    from rich.console import Console

WORKER = tuple(module_command("brt_dist.worker"))


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: its directory.
        verdict: of the last attempt.
        tracked: whether everything reached MLflow; None if tracking is off.
        plot: the loss curve, if there is one.
    """

    run: Path
    verdict: Verdict
    config: Config
    tracked: bool | None
    plot: Path | None

    def to_json(self) -> dict[str, Any]:
        history = History.read(self.run)
        last, saved = history.latest_step(), history.latest_checkpoint()
        tracking = self.config.run.tracking
        return {
            "run": str(self.run),
            **self.verdict.to_json(),
            "failed_rank": self.verdict.failed_rank,
            "detail": self.verdict.detail,
            "step": history.last_step,
            "last_step": to_json(last) if last else None,
            "evaluations": [to_json(history.evaluations[key]) for key in sorted(history.evaluations)],
            "checkpoint": saved.path if saved else None,
            "plot": str(self.plot) if self.plot else None,
            "mlflow": page_command(tracking, self.run) if tracking.enabled else None,
            "mlflow_page": page_link(tracking, self.run) if tracking.enabled else None,
            "tracked": self.tracked,
        }


def train(
    sources: Sequence[Path | str],
    overrides: Sequence[str],
    console: "Console",
    worker: Sequence[str] = WORKER,
    ray_address: str | None = None,
    began: float | None = None,
) -> Outcome:
    """Run attempts until one succeeds or no other may follow.

    Args:
        sources: config files or texts.
        overrides: `key=value` settings, which override the sources.
        console: standard error.
        worker: command of a rank; `RUN --attempt N` is appended.
        ray_address: replaces launch.ray_address, for this call only.
        began: when the command began, in unix seconds; None: now.

    Raises:
        BrtError: no attempt could be started.
    """
    began = time.time() if began is None else began
    resolved = load(sources, overrides)
    resolved = laid_out(replace(resolved, config=absolute(resolved.config)))
    config, run = resolved.config, resolved.config.run.directory
    check(config)
    check_before_start(config)
    check_with_data(config)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests())
        if stack.enter_context(claimed(run)):
            refuse_other_run(run, config)
            if (verdict := _finished_already(config)) is not None:
                return Outcome(run, verdict, config, None, _plot(config, run))
        try:
            verdict, tracked = _attempts(resolved, stop, console, tuple(worker), ray_address, began)
        except KeyboardInterrupt:
            verdict, tracked = Verdict(ExitCode.INTERRUPTED, "stopped before training started"), None
        return Outcome(run, verdict, config, tracked, _plot(config, run))


def _finished_already(config: Config) -> Verdict | None:
    """The verdict of a run whose last attempt has done all steps and saved; None of any other."""
    history = History.read(config.run.directory)
    ended_well = history.end is not None and history.end.exit_code == ExitCode.FINISHED
    if not ended_well or history.saved_step < config.run.steps:
        return None
    return Verdict(ExitCode.FINISHED, f"finished already, after step {history.saved_step}; raise run.steps to train on")


def check_with_data(config: Config) -> None:
    """Check the rules that need the datasets, and that the initial weights fit the model.

    Raises:
        ConfigError: a rule is broken, or the run needs more memory than its devices have.
        DataError: a dataset cannot be opened or does not fit.
        CheckpointError: the initial weights cannot be opened or do not fit.
    """
    training, validation = _dataset_facts(config)
    check(config, training, validation)
    run = config.run
    if run.tracking.logs_model:
        from brt_dist.export.formats.hf import refuse_unknown_kinds

        refuse_unknown_kinds(config.model)
    model = config.model.with_tokens(training.vocab_size)
    refuse_oversize(config.model_copy(update={"model": model}))
    if run.init_from is not None and not History.read(run.directory).checkpoints:
        from brt_dist.training.initial_weights import check_initial_weights

        check_initial_weights(run.init_from, config.model_copy(update={"model": model}), training.tokenizer_digest)


def _dataset_facts(config: Config) -> tuple[DatasetFacts, DatasetFacts | None]:
    """Facts about the training and the validation dataset.

    Raises:
        DataError: one of them cannot be opened.
    """
    from brt_dist.data.facts import facts_of
    from brt_dist.data.open import open_training, open_validation

    with open_training(config.data, _warn) as training:
        facts = facts_of(training, config)
    if (validation := open_validation(config.data, _warn)) is None:
        return facts, None
    with validation:
        return facts, facts_of(validation)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _attempts(
    resolved: Resolved,
    stop: StopRequests,
    console: "Console",
    worker: tuple[str, ...],
    ray_address: str | None,
    began: float,
) -> tuple[Verdict, bool | None]:
    config, run = resolved.config, resolved.config.run.directory
    note = changed_schedule(run, config)
    write_config(run, resolved)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    tell(f"run directory {run}")
    for line in (size_line(config), note):
        if line is not None:
            tell(line)
    for warning in warnings(config):
        tell(f"warning: {warning}")
    address = ray_address or config.launch.ray_address
    if needs_ray(config, address):
        tell(f"starting Ray on {'this machine' if address in (None, 'local') else address}")
    syncers: list[SyncerProcess] = []

    def look() -> None:
        if config.run.tracking.enabled and not syncers:
            syncers.append(SyncerProcess(run))
        for syncer in syncers:
            if (problem := syncer.new_refusal()) is not None:
                tell(f"warning: {problem}; training continues, and the rest can be sent later")

    try:
        verdict = Attempts(config, worker, address, stop, tell, look, began).run()
        _plot(config, run)
        _report(run, tell)
        tracked = _finish(syncers[0] if syncers else None, run, stop, console)
        if tracked and verdict.exit_code == ExitCode.FINISHED and config.run.tracking.logs_model:
            _log_model(config, tell)
        return verdict, tracked
    finally:
        for syncer in syncers:
            syncer.kill()


def _finish(syncer: SyncerProcess | None, run: Path, stop: StopRequests, console: "Console") -> bool | None:
    if syncer is None:
        return None
    console.print("uploading the remaining metrics to MLflow", markup=False, highlight=False)
    stop.counting = False  # Ctrl-C here means: do not wait
    try:
        done = syncer.finish()
    except KeyboardInterrupt:
        done = False
    if not done:
        health = Health.read(run)
        why = health.problem if health and health.problem else f"see {RunDirectory(run).syncer_log}"
        console.print(
            f"not everything reached MLflow ({why}); to send the rest later:\n  {finish_command(run)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return done


def _log_model(config: Config, tell: Callable[[str], None]) -> None:
    """Log the weights to MLflow from another process; the run has ended well whether or not that works."""
    run, name = config.run.directory, config.run.tracking.register_model
    command = module_command("launch.tracking.model", str(run), *(("--register", name) if name else ()))
    tell("logging the model to MLflow" + (f" as {name}" if name else ""))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except KeyboardInterrupt:
        problem = ["stopped by you"]
    if problem is not None:
        tell(f"the model was not logged ({' '.join(problem)}); to log it later:\n  {shlex.join(command)}")


def _report(run: Path, tell: Callable[[str], None]) -> None:
    """Write RUN/report.html, which also goes to MLflow.  A run does not fail if the page cannot be drawn."""
    from launch.report.page import write_report

    try:
        write_report([run], RunDirectory(run).report)
    except Exception as error:
        tell(f"warning: no report was written ({type(error).__name__}: {error})")


def _plot(config: Config, run: Path) -> Path | None:
    """The loss curve; a run does not fail if it cannot be drawn or written."""
    from launch.views.plots import plot_loss

    try:
        return plot_loss(run, config.run.name, config.optimizer.warmup_steps)
    except Exception as error:
        print(f"warning: the loss curve was not drawn: {type(error).__name__}: {error}", file=sys.stderr)
        return None
