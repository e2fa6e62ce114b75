"""What `brt sweep` does: every combination checked first, then trained one after another, or all given to a backend."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError, ConfigError, DataError, ExitCode
from brt_dist.run_directory import RunDirectory
from launch.run.claim import claimed
from launch.run.config_file import absolute, refuse_other_run
from launch.sweep.grid import Point, axes, points
from launch.sweep.record import RECORD, Result, Sweep, best
from launch.tracking.uri import tracking_uri
from launch.train import WORKER, check_with_data, train

if TYPE_CHECKING:
    from rich.console import Console

_OF_THE_USER = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)

Teller = Callable[[str], None]


@dataclass(frozen=True)
class Swept:
    """results: of all runs of the sweep; exit_code: 0 if all have finished, else that of the first that has not."""

    folder: Path
    results: list[Result]
    exit_code: int
    report: Path | None = None
    would_train: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        top = best(self.results)
        return {
            "sweep": str(self.folder),
            "runs": [result.to_json() for result in self.results],
            "best": top.to_json() if top else None,
            "report": str(self.report) if self.report else None,
            **({"would_train": list(self.would_train)} if self.would_train else {}),
        }


@dataclass(frozen=True)
class _Order:
    """A sweep as it was asked for.  base: the config without the grid; points: the combinations."""

    sources: Sequence[Path | str]
    overrides: Sequence[str]
    base: Config
    sweep: Sweep
    points: Sequence[Point]

    def overrides_of(self, point: Point) -> list[str]:
        """What makes the run of `point` of the sources."""
        own: dict[str, Any] = {
            "run.directory": str(self.sweep.folder / point.name),
            "run.name": f"{self.base.run.name} {point.name}",
            "run.tracking.parent": self.sweep.identity,
        }
        if self.base.run.tracking.uri is None:  # all runs and their parent in one store
            own["run.tracking.uri"] = tracking_uri(self.base.run.tracking, self.sweep.folder)
        return [*self.overrides, *point.overrides, *(f"{key}={json.dumps(value)}" for key, value in own.items())]

    def result_of(self, point: Point) -> Result:
        return Result.of(self.sweep.folder / point.name, point.settings)

    def has_finished(self, point: Point) -> bool:
        result = self.result_of(point)
        return (
            result.verdict == "finished"
            and result.step >= load(self.sources, self.overrides_of(point)).config.run.steps
        )


def sweep(
    sources: Sequence[Path | str],
    overrides: Sequence[str],
    grid: Sequence[str],
    console: "Console",
    *,
    submit: bool = False,
    dry_run: bool = False,
    worker: Sequence[str] = WORKER,
) -> Swept:
    """Train a run for each combination of the grid; those that have finished are left alone, begun ones go on.

    The config's run.directory is the folder of the sweep.  A run that fails does not keep the others from being
    trained; a stop by the user does.

    ConfigError, DataError: some run could not be trained; nothing was started, and all of them are named.
    """
    base = absolute(load(sources, overrides).config)
    if submit and base.launch.backend == "local":
        raise ConfigError(
            "--submit with launch.backend=local would start all runs on this machine at once; nearest: leave out "
            "--submit, and they are trained one after another"
        )
    folder = base.run.directory
    order = _Order(sources, overrides, base, Sweep.begun(folder, base.run.name), points(axes(grid)))
    _check(order)
    if dry_run:
        return Swept(folder, order.sweep.results(), 0, would_train=tuple(point.name for point in order.points))

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with claimed(folder, holds=RECORD, command="brt sweep"):
        order.sweep.add(order.points)
        if submit:
            _submit_all(order, tell)
        else:
            _train_all(order, console, tell, worker)
        return _finish(order, tell)


def _check(order: _Order) -> None:
    """ConfigError that names every run that could not be trained, and why."""
    problems: dict[str, list[str]] = {}
    for point in order.points:
        try:
            config = absolute(load(order.sources, order.overrides_of(point)).config)
            check(config)
            check_with_data(config)
            if RunDirectory(config.run.directory).is_run:
                refuse_other_run(config.run.directory, config)
        except (ConfigError, DataError, CheckpointError) as error:
            problems.setdefault(str(error), []).append(point.name)
    if problems:
        count = sum(map(len, problems.values()))
        lines = [f"{', '.join(names)}: {problem}" for problem, names in problems.items()]
        raise ConfigError(
            "\n".join([f"{count} of {len(order.points)} runs could not be trained; none was started", *lines])
        )


def _train_all(order: _Order, console: "Console", tell: Teller, worker: Sequence[str]) -> None:
    for number, point in enumerate(order.points, 1):
        place = f"[{number}/{len(order.points)}] {point.name}"
        if order.has_finished(point):
            tell(f"{place}: finished before")
            continue
        tell(place)
        verdict = train(order.sources, order.overrides_of(point), console, worker).verdict
        tell(f"{place}: {verdict.reason}")
        if verdict.exit_code in _OF_THE_USER:
            tell("the sweep stops here; the same command goes on with it")
            return


def _submit_all(order: _Order, tell: Teller) -> None:
    from launch.backends import submission

    for point in order.points:
        there = submission.state(order.sweep.folder / point.name)
        if there is not None and there[1] in ("queued", "running"):
            tell(f"{point.name}: {there[1]} already")
        elif order.has_finished(point):
            tell(f"{point.name}: finished before")
        else:
            record = submission.submit(order.sources, order.overrides_of(point)).record
            tell(f"{point.name}: {record.backend} job {record.job}" if record else point.name)


def _finish(order: _Order, tell: Teller) -> Swept:
    """The report of all runs, and the parent run of MLflow."""
    from launch.report.page import write_report

    folder, results = order.sweep.folder, order.sweep.results()
    begun = [result.run for result in results if RunDirectory(result.run).is_run]
    report = write_report(begun, RunDirectory(folder).report) if begun else None
    if order.base.run.tracking.enabled and begun:
        from launch.sweep.parent import send_apart

        if (problem := send_apart(folder)) is not None:
            tell(f"the parent run did not reach MLflow: {problem}")
    unfinished = [result.exit_code for result in results if result.verdict != "finished"]
    return Swept(folder, results, unfinished[0] if unfinished else 0, report)
