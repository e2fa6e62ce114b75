"""`brt submit`, `resume`, `stop` and `logs`, the same for every backend."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from brt_dist.checkpoint.places import answering, find_place
from brt_dist.checkpoint.report import row_of
from brt_dist.config.costs import warnings
from brt_dist.config.environment import for_ranks
from brt_dist.config.loading import Resolved, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.kinds import BACKENDS
from brt_dist.run_directory import RunDirectory
from launch.backends.job import Job, chunks
from launch.doctor.fitting import laid_out, refuse_oversize
from launch.run.claim import claimed
from launch.run.config_file import absolute, refuse_other_run, write_config
from launch.run.redact import redact
from launch.run.submission import State, Submission
from launch.train import check_with_data


@dataclass(frozen=True)
class Submitted:
    """The result of a submission.

    Attributes:
        run: the run directory.
        text: what was applied, or would have been in a dry run.
        record: the submission; None in a dry run.
        checkpoint: from which a resumed run continues, judged by its manifest and the sizes of its files (the ranks
            also compare digests); None if the run starts from scratch.
        passed_over: newer checkpoints, each with what is wrong with it.
        environment: variables that the config gives to every rank.
    """

    run: Path
    text: str
    record: Submission | None
    checkpoint: str | None = None
    passed_over: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "submission": asdict(self.record) if self.record else None,
            "checkpoint": self.checkpoint,
            "passed_over": list(self.passed_over),
            **({} if self.record else {"would_apply": self.text, "environment": dict(self.environment)}),
        }


def submit(sources: Sequence[Path | str], overrides: Sequence[str], *, dry_run: bool = False) -> Submitted:
    """Submit the run that the config describes to its backend (`launch.backend`); an existing run resumes.

    Everything that can be checked here is checked first.  A dry run writes nothing and contacts nobody.

    Raises:
        ConfigError: the run cannot be trained.
        DataError: its datasets cannot be used.
        PlatformError: the backend refuses, or the run is already submitted.
    """
    config, resolved = _checked(sources, overrides)
    if dry_run:
        environment = for_ranks(config.launch.default_environment, {}, config.launch.environment)
        job = Job(config, _next_number(config.run.directory))
        text = BACKENDS[config.launch.backend]().render(job)
        return Submitted(job.run, text, None, environment=environment)
    job = _prepared(config, resolved)
    there = BACKENDS[config.launch.backend]()
    record = there.submit(job)
    record.write(job.run)
    return Submitted(job.run, there.render(job), record)


def submit_many(runs: Sequence[tuple[Sequence[Path | str], Sequence[str]]]) -> Iterator[Submission]:
    """Submit runs (sources and overrides of each) to one backend, together if it can; yields the result of each.

    Raises the errors of :func:`submit`; config errors are raised before anything is submitted.
    """
    checked = [_checked(sources, overrides) for sources, overrides in runs]
    jobs = [_prepared(config, resolved) for config, resolved in checked]
    if not jobs:
        return
    for job, record in zip(jobs, BACKENDS[jobs[0].config.launch.backend]().submit_many(jobs), strict=True):
        record.write(job.run)
        yield record


def _checked(sources: Sequence[Path | str], overrides: Sequence[str]) -> tuple[Config, Resolved]:
    """The config of a run that may be submitted."""
    resolved = load(sources, overrides)
    resolved = laid_out(replace(resolved, config=absolute(resolved.config)))
    config = resolved.config
    check(config)
    _check_here(config)
    for warning in warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    if RunDirectory(config.run.directory).is_run:
        refuse_other_run(config.run.directory, config)
    return config, resolved


def _prepared(config: Config, resolved: Resolved) -> Job:
    """The job of a run whose directory is written and which is not submitted at the moment."""
    run = config.run.directory
    with claimed(run):
        _refuse_second(run)
        write_config(run, resolved)
        RunDirectory(run).stop_request.unlink(missing_ok=True)
    return Job(config, _next_number(run))


def resume(run: Path, overrides: Sequence[str], *, allow: Sequence[str] = (), dry_run: bool = False) -> Submitted:
    """Submit the run in `run` again; it resumes from its newest complete checkpoint.

    Args:
        run: the run directory.
        overrides: `key=value` settings, which override the run's config.
        allow: keys that may differ from the run's although that makes it a different run (see config.changes).
        dry_run: write nothing and contact nobody.

    Raises:
        ConfigError: other keys differ; lists all of them.
    """
    run = Path(os.path.abspath(run))
    allowed = [f"run.allow={json.dumps(list(allow))}"] if allow else []
    config = RunDirectory.existing(run).config
    given = [*overrides, *allowed, f"run.directory={json.dumps(str(run))}"]
    checkpoint, passed_over = _newest_complete(run)
    return replace(submit([config], given, dry_run=dry_run), checkpoint=checkpoint, passed_over=tuple(passed_over))


def _newest_complete(run: Path) -> tuple[str | None, list[str]]:
    storage = find_place(str(run)).storage
    passed_over: list[str] = []
    with answering(storage):
        names = storage.names()
    for name in reversed(names):
        problem = row_of(storage, name)["problem"]
        if problem is None:
            return name, passed_over
        passed_over.append(f"{name}: {problem}")
    return None, passed_over


def state(run: Path) -> tuple[Submission, State] | None:
    """The last submission and its state; None if the run was never submitted."""
    record = Submission.read(run)
    return None if record is None else (record, BACKENDS[record.backend]().state(record))


def stop(run: Path) -> str:
    """Ask the run to save and stop; returns what was done."""
    RunDirectory.existing(run)
    record = Submission.read(run)
    if record is None:
        raise PlatformError(f"{run} was not submitted; stop its `brt train` with Ctrl-C or kill")
    there = BACKENDS[record.backend]()
    before = there.state(record)
    if before == "ended":
        return f"{record.backend} job {record.job} has already ended"
    there.stop(record, run)
    if before == "queued":
        RunDirectory(run).stop_request.touch()  # on any backend: it tells `brt status` that nothing failed
        return f"{record.backend} job {record.job} was removed from the queue"
    return f"{record.backend} job {record.job} was asked to save and stop"


def log(run: Path, rank: int | None = None, attempt: int | None = None) -> Iterator[str]:
    """The log of the launcher of the last submission, or of a rank if one is given or the run was never submitted.

    Args:
        run: the run directory.
        rank: whose log to read.
        attempt: by default the last.

    Raises:
        ConfigError: there is no such log; says what there is.
    """
    directory = RunDirectory.existing(run)
    record = Submission.read(run)
    if record is not None and rank is None and attempt is None:
        return BACKENDS[record.backend]().log(record, run)
    known = directory.attempts()
    if not known:
        raise ConfigError(f"{run} has no attempt yet, so there are no logs of ranks")
    wanted = known[-1] if attempt is None else attempt
    if wanted not in known:
        raise ConfigError(f"{run} has no attempt {wanted}; the last is {known[-1]}")
    folder = directory.attempt(wanted)
    path = folder.log(rank or 0)
    if not path.is_file():
        there = [entry.name for entry in folder.logs()]
        raise ConfigError(f"attempt {wanted} has no rank {rank}; it has {', '.join(there[:3]) or 'none'}")
    return chunks(path)


def _check_here(config: Config) -> None:
    """Check what `brt train` would otherwise find out only once the job has its nodes."""
    launch, backend, uri = config.launch, BACKENDS[config.launch.backend], config.run.tracking.uri
    problems = [*backend.broken_on_submit(config)]
    if launch.ray_address is not None and not backend.joins_cluster:
        problems.append(
            f"launch.ray_address={launch.ray_address} with launch.backend={launch.backend}, which starts its own "
            "cluster; remove launch.ray_address"
        )
    if uri is not None and redact(uri) != uri and not backend.hides_config:
        problems.append(
            f"run.tracking.uri={redact(uri)} contains a password, which would be readable in the cluster; nearest: "
            "a URI without it, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of the "
            "pods (launch.kubernetes.secret_environment) or of the cluster"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    # A cluster's folders need not exist here.
    if backend.shares_folders or _are_here(config):
        check_with_data(config)
    else:
        refuse_oversize(config)


def _are_here(config: Config) -> bool:
    return all(isinstance(place, Path) and place.is_dir() for place, _ in config.data.training)


def _refuse_second(run: Path) -> None:
    found = state(run)
    if found is not None and found[1] in ("queued", "running"):
        record, now = found
        raise PlatformError(
            f"{run} is already submitted ({record.backend} job {record.job}, {now}); use brt stop to stop it"
        )


def _next_number(run: Path) -> int:
    record = Submission.read(run)
    return record.number + 1 if record else 1
