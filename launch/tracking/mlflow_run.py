"""The one MLflow run of a run directory: found or created, described, logged to in batches, ended.  Imports mlflow."""

import getpass
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brt_dist.config.schema import Config
from launch.run.attempt_record import read_attempts
from launch.run.dataset_record import dataset_name, dataset_record
from launch.run.redact import redact
from launch.tracking.client import connect, experiment_id, find_or_make, sweep_name
from launch.tracking.params import description
from launch.tracking.rows import Row, Tag, TextFile
from launch.tracking.state import SyncState

if TYPE_CHECKING:
    from mlflow.entities import Metric

_BATCH_METRICS = 1000  # limits of MLflow's API
_BATCH_PARAMS = 100
_DIGEST_LENGTH = 36
_NAME_LENGTH = 500
_VALUE_LENGTH = 5000


class MlflowRun:
    """Connects at once; every method raises whatever MLflow raises if the server fails."""

    def __init__(self, uri: str, config: Config, run: Path, state: SyncState) -> None:
        tracking = config.run.tracking
        self._client = connect(uri)
        self._run, self._state = run, state
        self._left_out = set[str]()  # names of metrics
        if state.experiment_id is None:
            state.experiment_id = experiment_id(self._client, tracking.experiment, uri)
        if state.run_id is None:
            state.save(run)  # the identity first: if this process is killed now, it finds the run again
            tags = {"mlflow.source.name": "brt train", "mlflow.source.type": "LOCAL"}
            tags |= {"mlflow.user": _user(), "mlflow.note.content": _text(description(config))}
            if tracking.parent is not None:
                parent = find_or_make(self._client, state.experiment_id, tracking.parent, sweep_name(tracking.parent))
                tags["mlflow.parentRunId"] = parent
            begun = min((record.start for record in read_attempts(run) if record.start is not None), default=None)
            state.run_id = find_or_make(self._client, state.experiment_id, state.identity, config.run.name, tags, begun)
            state.save(run)
        self._client.update_run(state.run_id, status="RUNNING")

    @property
    def id(self) -> str:
        assert self._state.run_id is not None
        return self._state.run_id

    def describe(self, params: Mapping[str, str]) -> None:
        """Log new params; a changed value becomes a tag `changed.KEY`, because params cannot change."""
        from mlflow.entities import Param

        known = self._state.params or {}
        items = [Param(key, value[:_VALUE_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(items), _BATCH_PARAMS):
            self._client.log_batch(self.id, params=items[start : start + _BATCH_PARAMS])
        if items:
            self._state.params = {**params, **known}
            self._state.save(self._run)
        self.tag({f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags; earlier values are overwritten."""
        from mlflow.entities import RunTag

        if tags:
            items = [RunTag(key, _text(value)[:_VALUE_LENGTH]) for key, value in tags.items()]
            self._client.log_batch(self.id, tags=items)

    def log_datasets(self, datasets: Sequence[tuple[str, Path | str]]) -> None:
        """Log dataset inputs.

        Args:
            datasets: context (training, validation) and the folder or URL of each.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for context, folder in datasets:
            record = dataset_record(folder)
            digest = str(record.get("digest", ""))
            profile = {key: record[key] for key in ("documents", "tokens", "digest") if key in record}
            dataset = Dataset(
                name=_text(dataset_name(folder))[-_NAME_LENGTH:],
                digest=digest.removeprefix("sha256:")[:_DIGEST_LENGTH] or "unknown",
                source_type="local" if isinstance(folder, Path) else "url",
                source=json.dumps({"uri": _text(redact(str(folder)))}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(self.id, inputs)

    def log(self, rows: Iterable[Row | Tag | TextFile]) -> None:
        """Send rows in batches, with their own times."""
        from mlflow.entities import Metric

        items = list(rows)
        curves = [item for item in items if isinstance(item, Row) and item.key not in self._left_out]
        metrics = [Metric(row.key, row.value, row.time, row.step) for row in curves]
        tags = {item.key: item.value for item in items if isinstance(item, Tag)}
        for start in range(0, len(metrics), _BATCH_METRICS):
            self._log_metrics(metrics[start : start + _BATCH_METRICS])
        self.tag(tags)
        for item in items:
            if isinstance(item, TextFile):
                self.log_text(item.text, item.name)

    def _log_metrics(self, metrics: "Sequence[Metric]") -> None:
        """Send a batch without the metrics that the server will never accept, which would be retried for ever."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self.id, metrics=metrics)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not self._is_there():
                raise
            if len(metrics) > 1:
                half = len(metrics) // 2
                self._log_metrics(metrics[:half])
                self._log_metrics(metrics[half:])
            elif (name := metrics[0].key) not in self._left_out:
                self._left_out.add(name)
                print(f"MLflow does not take metric {name!r}; it is left out: {error.message}", file=sys.stderr)

    def _is_there(self) -> bool:
        """Whether the run still exists; a deleted one accepts nothing until it is restored."""
        return str(self._client.get_run(self.id).info.lifecycle_stage) == "active"

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._client.log_text(self.id, text, name)

    def end(self, status: str, at: float | None) -> None:
        """End the MLflow run.

        Args:
            status: FINISHED, FAILED or KILLED.
            at: unix seconds; None: now.
        """
        self._client.set_terminated(self.id, status=status, end_time=round((at or time.time()) * 1000))


def _text(value: str) -> str:
    """A value that a server accepts: bytes of a path that are not text are escaped."""
    return value.encode(errors="backslashreplace").decode()


def _user() -> str:
    """The user's name, for which containers may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
