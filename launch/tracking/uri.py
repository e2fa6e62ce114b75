"""Tracking URIs: the default, and how they are shown."""

import hashlib
import os
import shlex
from pathlib import Path

from brt_dist.config.schema import TrackingConfig
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact, without_credentials
from launch.tracking.state import SyncState


def tracking_uri(tracking: TrackingConfig, run: Path) -> str:
    """The URI that was given, or the SQLite file of the run (see `store_of`)."""
    return tracking.uri or f"sqlite:///{store_of(run)}"


def store_of(run: Path) -> Path:
    """The default store of a run: `mlflow.db` in the folder that holds its run directory, shared with its neighbours.

    One page then compares them.  Runs of older versions keep the store in their run directory; it is also there if the
    folder around it cannot be written or is on another disk (a volume mounted at the run directory).
    """
    directory = RunDirectory(run.absolute())
    own, shared = directory.mlflow_store, directory.shared_mlflow_store
    if own.is_file() or os.path.ismount(run):
        return own
    around = shared.parent
    return shared if shared.is_file() or not around.exists() or os.access(around, os.W_OK) else own


def fingerprint(uri: str) -> str:
    """Tells one tracking server from another without keeping its URI."""
    return hashlib.sha256(without_credentials(uri).encode()).hexdigest()[:16]


def page_command(tracking: TrackingConfig, run: Path) -> str:
    """How a user opens the run in MLflow's UI; a server has its own UI."""
    if _is_server(tracking):
        return f"open {page_link(tracking, run)}"
    uri = redact(tracking_uri(tracking, run))
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"


def page_link(tracking: TrackingConfig, run: Path) -> str:
    """The page of the run, once it was sent; before, that of the server.

    MLflow opens its pages for agents and traces first, whatever the kind of the experiment, unless the link asks for
    those of model training.
    """
    server = redact(tracking.uri or "").rstrip("/") if _is_server(tracking) else "http://127.0.0.1:5000"
    state = SyncState.load(run, fingerprint(tracking_uri(tracking, run)))
    if state.experiment_id is None or state.run_id is None:
        return server
    return f"{server}/#/experiments/{state.experiment_id}/runs/{state.run_id}?workflowType=machine_learning"


def _is_server(tracking: TrackingConfig) -> bool:
    return tracking.uri is not None and "://" in tracking.uri and not tracking.uri.startswith(("sqlite:", "file:"))
