"""A client of a tracking server, with short timeouts; finds what was created before.  Imports mlflow."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_IDENTITY = "brt.identity"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
# Notice an unreachable server within seconds; the caller decides how long to retry.
_SHORT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def connect(uri: str) -> "MlflowClient":
    os.environ.update({key: value for key, value in _SHORT.items() if key not in os.environ})
    if (file := sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", name: str, uri: str) -> str:
    """The id of the experiment, created if needed; for a SQLite file, artifacts are stored beside it.

    A new experiment is of the model training kind, so that MLflow's page shows its runs and not agent traces.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    file = sqlite_file(uri)
    artifacts = (file.absolute().parent / "mlartifacts").as_uri() if file else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags=_KIND))
    except MlflowException:  # another process has just created it
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def find_or_make(
    client: "MlflowClient",
    experiment: str,
    identity: str,
    name: str,
    tags: Mapping[str, str] | None = None,
    begun: float | None = None,
) -> str:
    """The id of the run with this identity, created if needed; two processes that create it agree on one.

    `begun` is its start in unix seconds; None: now.
    """
    if found := _with_identity(client, experiment, identity):
        return found[0]
    start = None if begun is None else round(begun * 1000)
    tags = {_IDENTITY: identity, **(tags or {})}
    made = str(client.create_run(experiment, start_time=start, run_name=name, tags=tags).info.run_id)
    first = _with_identity(client, experiment, identity)[0]
    if first != made:
        client.delete_run(made)
    return first


def sweep_name(identity: str) -> str:
    """The name of a sweep: its identity without the random part."""
    return identity.rpartition("-")[0] or identity


def refusal(error: Exception) -> str | None:
    """A message that the server rejects the credentials; None if `error` is something else."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException) or (status := error.get_http_status_code()) not in (401, 403):
        return None
    what = {401: "rejects the user name and password, or the token", 403: "does not allow this user to write"}
    return (
        f"the tracking server {what[status]} (HTTP {status}); set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None of any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _with_identity(client: "MlflowClient", experiment: str, identity: str) -> list[str]:
    """Ids, in an order that is the same for every process."""
    query = f"tags.`{_IDENTITY}` = '{identity}'"
    found: list[Any] = client.search_runs([experiment], filter_string=query)
    return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]
