"""The runs of an MLflow experiment, as `brt list` shows them.  Imports mlflow."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.schema import TrackingConfig
from brt_dist.errors import BrtError, ConfigError, PlatformError
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact
from launch.run.tracking_place import settled
from launch.tracking.client import connect, refusal, sqlite_file
from launch.tracking.names import CURRENT, FIRST, metric
from launch.views.summary import verdict_words

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 200  # runs of an answer
_SHOWN = {"loss": "step.loss", "tokens_per_second": "step.tokens_per_second"}


def runs_of_experiment(uri: str | None, experiment: str | None, folder: Path) -> tuple[dict[str, str], list[Any], int]:
    """Read from a server or store what is known of the runs of an experiment.

    Args:
        uri: of the server or store; None: MLFLOW_TRACKING_URI, or else `mlflow.db` in the folder.
        experiment: its name; None: MLFLOW_EXPERIMENT_NAME, or else that of runs which name none.
        folder: where to look for a store.

    Returns:
        Where they were found, a row for each run of ours (see :func:`_row`), and how many other runs there are.

    Raises:
        ConfigError: there is no such store or experiment.
        PlatformError: the server does not answer, or what is there cannot be read.
    """
    given = {"uri": uri, "experiment": experiment}
    tracking = settled(TrackingConfig(**{key: value for key, value in given.items() if value is not None}))
    store = tracking.uri or f"sqlite:///{RunDirectory(folder.absolute() / 'run').shared_mlflow_store}"
    file = sqlite_file(store)
    if file is not None and not file.is_file():
        raise ConfigError(f"no MLflow store {file}; name one with --mlflow, or a folder with runs")
    for library in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        client = connect(store)
        runs = list(_runs(client, _experiment_id(client, tracking.experiment)))
    except BrtError:
        raise
    except Exception as error:  # of MLflow, its database or its client
        said = refusal(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PlatformError(f"cannot read the runs of {redact(store)}: {redact(said)}") from None
    ours = [run for run in runs if "brt.run_directory" in run.data.tags]
    where = {"tracking_uri": redact(store), "experiment": tracking.experiment}
    return where, [_row(run) for run in ours], len(runs) - len(ours)


def _experiment_id(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    names = [one.name for one in client.search_experiments()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    raise ConfigError(
        f"there is no experiment {name}" + (f"; nearest: {near[0]}" if near else "; there are: " + ", ".join(names))
    )


def _runs(client: "MlflowClient", experiment: str) -> "Iterator[Run]":
    token = None
    while True:
        page = client.search_runs([experiment], max_results=_PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _row(run: "Run") -> dict[str, Any]:
    """What `brt list` shows of a run, and its id."""
    tags, params = run.data.tags, run.data.params
    # the only place where the steps of the latest values are, short of whole histories
    latest = {one.key: one for one in run.data._metric_objs}
    found = {key: _latest(latest, what) for key, what in _SHOWN.items()}
    held_out = _latest(latest, "evaluation.bits_per_token", data="validation", dataset="validation", memory="carried")
    steps = tags.get("changed.run.steps") or params.get("run.steps")
    loss = found["loss"]
    is_running = run.info.status in ("RUNNING", "SCHEDULED")
    return {
        "run": tags["brt.run_directory"],
        "name": run.info.run_name,
        "state": "running" if is_running else verdict_words(tags.get("verdict") or run.info.status.lower()),
        "step": loss.step if loss is not None else 0,
        "steps": int(steps) if steps and steps.isdigit() else None,
        **{key: None if one is None else one.value for key, one in found.items()},
        "bits_per_token": None if held_out is None else held_out.value,
        "time": (loss.timestamp if loss is not None else run.info.start_time or 0) / 1000,
        "id": run.info.run_id,
    }


def _latest(latest: Mapping[str, Any], what: str, **values: str) -> Any:
    """The latest value of a metric, under the name that the run gives it."""
    names = [metric(what, version, **values) or "" for version in (CURRENT, FIRST)]
    return next((latest[name] for name in names if name in latest), None)
