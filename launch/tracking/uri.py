"""Tracking URIs: the default, and how they are shown."""

import hashlib
import shlex
from pathlib import Path

from brt_dist.config.schema import TrackingConfig
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact, without_credentials


def tracking_uri(tracking: TrackingConfig, run: Path) -> str:
    """The URI that was given, or a SQLite file in the run directory."""
    return tracking.uri or f"sqlite:///{RunDirectory(run.absolute()).mlflow_store}"


def fingerprint(uri: str) -> str:
    """Tells one tracking server from another without keeping its URI."""
    return hashlib.sha256(without_credentials(uri).encode()).hexdigest()[:16]


def page_command(tracking: TrackingConfig, run: Path) -> str:
    """How a user opens the run in MLflow's UI; a server has its own UI."""
    if tracking.uri is not None and "://" in tracking.uri and not tracking.uri.startswith(("sqlite:", "file:")):
        return f"open {redact(tracking.uri)}"
    uri = redact(tracking_uri(tracking, run))
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"
