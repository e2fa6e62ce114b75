"""`brt sweep`: checks every combination, then trains them one after another or submits all of them to a backend."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError, ConfigError, DataError, ExitCode
from brt_dist.run_directory import RunDirectory
from launch.doctor.fitting import laid_out
from launch.run.claim import claimed
from launch.run.config_file import absolute, refuse_other_run
from launch.sweep.grid import Point
from launch.sweep.record import RECORD, Result, Sweep, best
from launch.tracking.uri import tracking_uri
from launch.train import WORKER, check_with_data, train

if TYPE_CHECKING:
    from rich.console import Console

    from launch.report.sweep import Swept as ReportedSweep

_OF_THE_USER = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)

Teller = Callable[[str], None]


@dataclass(frozen=True)
class Swept:
    """The outcome of a sweep.

    Attributes:
        results: of all runs of the sweep.
        exit_code: 0 if all runs finished, else that of the first that did not.
        report: the report of all runs.
        would_train: names of the runs, in a dry run.
    """

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
class _Request:
    """A sweep as requested.

    Attributes:
        base: the config without the grid.
        points: the combinations.
    """

    sources: Sequence[Path | str]
    overrides: Sequence[str]
    base: Config
    sweep: Sweep
    points: Sequence[Point]

    def overrides_of(self, point: Point) -> list[str]:
        """The overrides that turn the sources into the run of `point`."""
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
    points: Sequence[Point],
    console: "Console",
    *,
    submit: bool = False,
    dry_run: bool = False,
    worker: Sequence[str] = WORKER,
) -> Swept:
    """Train the runs of a sweep; skips finished runs and resumes the others.

    The config's run.directory is the folder of the sweep.  The sweep continues if a run fails, and ends if the user
    stops a run.

    Raises:
        ConfigError: some runs cannot be trained; all of them are named, and none was started.
    """
    base = absolute(load(sources, overrides).config)
    if submit and base.launch.backend == "local":
        raise ConfigError(
            "--submit with launch.backend=local would start all runs on this machine at once; nearest: without "
            "--submit, they are trained one after another"
        )
    folder = base.run.directory
    request = _Request(sources, overrides, base, Sweep.open(folder, base.run.name), points)
    _check(request)
    if dry_run:
        return Swept(folder, request.sweep.results(), 0, would_train=tuple(point.name for point in request.points))

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with claimed(folder, holds=RECORD, command="brt sweep"):
        request.sweep.add(request.points)
        if submit:
            _submit_all(request, tell)
        else:
            _train_all(request, console, tell, worker)
        return _finish(request, tell)


def _check(request: _Request) -> None:
    """Raise a ConfigError that names every run that cannot be trained, and why."""
    problems: dict[str, list[str]] = {}
    for point in request.points:
        try:
            resolved = load(request.sources, request.overrides_of(point))
            config = laid_out(replace(resolved, config=absolute(resolved.config))).config
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
            "\n".join([f"{count} of {len(request.points)} runs cannot be trained; none was started", *lines])
        )


def _train_all(request: _Request, console: "Console", tell: Teller, worker: Sequence[str]) -> None:
    for number, point in enumerate(request.points, 1):
        place = f"[{number}/{len(request.points)}] {point.name}"
        if request.has_finished(point):
            tell(f"{place}: finished already")
            continue
        tell(place)
        verdict = train(request.sources, request.overrides_of(point), console, worker).verdict
        tell(f"{place}: {verdict.reason}")
        if verdict.exit_code in _OF_THE_USER:
            tell("stopping the sweep; run the same command again to resume it")
            return


def _submit_all(request: _Request, tell: Teller) -> None:
    from launch.backends import submission

    points = []
    for point in request.points:
        there = submission.state(request.sweep.folder / point.name)
        if there is not None and there[1] in ("queued", "running"):
            tell(f"{point.name}: already {there[1]}")
        elif request.has_finished(point):
            tell(f"{point.name}: finished already")
        else:
            points.append(point)
    records = submission.submit_many([(request.sources, request.overrides_of(point)) for point in points])
    for point, record in zip(points, records, strict=True):
        tell(f"{point.name}: {record.backend} job {record.job}")


def _swept(request: _Request, results: Sequence[Result]) -> "ReportedSweep":
    """The sweep as its report shows it."""
    from launch.report.sweep import Swept as ReportedSweep
    from launch.report.sweep import SweptRun

    top = best(results)
    runs = [
        SweptRun(one.run.name, one.settings, one.verdict, one.step, one.loss, one.bits_per_token) for one in results
    ]
    return ReportedSweep(f"Sweep {request.base.run.name}", runs, top.run.name if top else None)


def _finish(request: _Request, tell: Teller) -> Swept:
    """Write the report of all runs, and update the parent run in MLflow."""
    from launch.report.page import write_report

    folder, results = request.sweep.folder, request.sweep.results()
    begun = [result.run for result in results if RunDirectory(result.run).is_run]
    report = write_report(begun, RunDirectory(folder).report, _swept(request, results)) if begun else None
    if request.base.run.tracking.enabled and begun:
        from launch.sweep.parent import send_apart

        if (problem := send_apart(folder)) is not None:
            tell(f"the parent run could not be sent to MLflow: {problem}")
    unfinished = [result.exit_code for result in results if result.verdict != "finished"]
    return Swept(folder, results, unfinished[0] if unfinished else 0, report)
