"""The one MLflow run of a run directory: found or made, described, fed in batches, ended.  Imports mlflow."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.tracking.rows import Row, Tag
from launch.tracking.state import SyncState
from launch.tracking.uri import redact, tracking_folder

_BATCH_METRICS = 1000  # limits of MLflow's API
_BATCH_PARAMS = 100
_DIGEST_LENGTH = 36
_VALUE_LENGTH = 5000

# A server that is away must be noticed in seconds: the syncer has its own patience.
_SHORT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MlflowRun:
    """Connects at once; every method raises what MLflow raises when the server does not do as asked."""

    def __init__(self, uri: str, experiment: str, name: str, run: Path, state: SyncState) -> None:
        os.environ.update({key: value for key, value in _SHORT.items() if key not in os.environ})
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._run, self._state = run, state
        if state.experiment_id is None:
            state.experiment_id = self._experiment(experiment, own_store=uri.startswith("sqlite:"))
        if state.run_id is None:
            state.save(run)  # the identity first: if we are killed now, the run is found by it
            state.run_id = self._find() or self._make(name)
            state.save(run)
        self._client.update_run(state.run_id, status="RUNNING")

    @property
    def id(self) -> str:
        assert self._state.run_id is not None
        return self._state.run_id

    def describe(self, params: Mapping[str, str]) -> None:
        """Log params (once; what changed later becomes a tag `changed.KEY`)."""
        from mlflow.entities import Param

        known = self._state.params
        if known is None:
            items = [Param(key, value[:_VALUE_LENGTH]) for key, value in params.items()]
            for start in range(0, len(items), _BATCH_PARAMS):
                self._client.log_batch(self.id, params=items[start : start + _BATCH_PARAMS])
            self._state.params = known = dict(params)
            self._state.save(self._run)
        self.tag({f"changed.{key}": value for key, value in params.items() if known.get(key) != value})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags; what they were before is gone."""
        from mlflow.entities import RunTag

        if tags:
            self._client.log_batch(self.id, tags=[RunTag(key, value[:_VALUE_LENGTH]) for key, value in tags.items()])

    def log_datasets(self, datasets: Sequence[tuple[str, Path | str]]) -> None:
        """Log dataset inputs; `datasets`: context (training, validation) and the folder or URL of each."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for context, folder in datasets:
            record = _dataset_record(Path(folder)) if isinstance(folder, Path) else {}  # ranks read URLs, not we
            digest = str(record.get("digest", ""))
            profile = {key: record[key] for key in ("documents", "tokens", "digest") if key in record}
            name, uri = shown_place(folder)
            dataset = Dataset(
                name=name,
                digest=digest.removeprefix("sha256:")[:_DIGEST_LENGTH] or "unknown",
                source_type="local" if isinstance(folder, Path) else "url",
                source=json.dumps({"uri": uri}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(self.id, inputs)

    def log(self, rows: Iterable[Row | Tag]) -> None:
        """Send rows in batches, with their own times."""
        from mlflow.entities import Metric

        items = list(rows)
        metrics = [Metric(row.key, row.value, row.time, row.step) for row in items if isinstance(row, Row)]
        tags = {item.key: item.value for item in items if isinstance(item, Tag)}
        for start in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(self.id, metrics=metrics[start : start + _BATCH_METRICS])
        self.tag(tags)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._client.log_text(self.id, text, name)

    def end(self, status: str, at: float | None) -> None:
        """status: FINISHED, FAILED or KILLED; at: unix seconds."""
        self._client.set_terminated(self.id, status=status, end_time=round((at or time.time()) * 1000))

    def _experiment(self, name: str, own_store: bool) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (tracking_folder(self._run).absolute() / "artifacts").as_uri() if own_store else None
        try:
            return str(self._client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # somebody else made it just now
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self) -> str | None:
        query = f"tags.`brt.identity` = '{self._state.identity}'"
        found = self._client.search_runs([self._state.experiment_id], filter_string=query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _make(self, name: str) -> str:
        tags = {"brt.identity": self._state.identity, "mlflow.source.name": "brt train"}
        made = self._client.create_run(self._state.experiment_id, run_name=name, tags=tags)
        return str(made.info.run_id)


def refusal(error: Exception) -> str | None:
    """In words for the user, that the server does not take the credentials; none if `error` is something else."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException) or (status := error.get_http_status_code()) not in (401, 403):
        return None
    what = {401: "does not take the user name and password, or the token", 403: "does not allow this user to write"}
    return (
        f"the tracking server {what[status]} (HTTP {status}); set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def shown_place(place: Path | str) -> tuple[str, str]:
    """Name and URI of a dataset, without what a URL may hold of passwords and tokens."""
    uri = redact(str(place))
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2], uri


def _dataset_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "dataset.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
