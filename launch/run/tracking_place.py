"""Where a run is tracked: settled when it first starts, and the same for every process and folder after that."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from brt_dist.config.schema import TrackingConfig
from brt_dist.errors import ConfigError

_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_NAMES = ("databricks", "databricks-uc", "uc")  # used unchanged
_SERVERS = ("http", "https", "databricks", "uc")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def settled(tracking: TrackingConfig, environment: Mapping[str, str] = os.environ) -> TrackingConfig:
    """`tracking` with MLflow's own variables where the config sets nothing, and with absolute paths.

    Raises:
        ConfigError: MLflow knows no such kind of URI.
    """
    if not tracking.enabled:
        return tracking
    uri = tracking.uri or environment.get(_URI) or None
    experiment = tracking.experiment
    if "experiment" not in tracking.model_fields_set:
        experiment = environment.get(_EXPERIMENT) or experiment
    return tracking.model_copy(update={"uri": None if uri is None else _absolute(uri), "experiment": experiment})


def _absolute(uri: str) -> str:
    scheme = urlsplit(uri).scheme if ":" in uri else ""
    kind = scheme.partition("+")[0]
    if uri in _NAMES:
        return uri
    if not scheme:  # a folder
        return Path(os.path.abspath(uri)).as_uri()
    if kind in _SERVERS or (kind in _DATABASES and kind != "sqlite"):
        return uri
    if kind == "sqlite":
        place = uri.partition("://")[2].removeprefix("/")  # after the third slash; a fourth begins an absolute path
        return uri if place.startswith("/") or place in ("", ":memory:") else f"{scheme}:///{os.path.abspath(place)}"
    if kind == "file":
        place = unquote(urlsplit(uri).path)
        return Path(os.path.abspath(place)).as_uri()
    near = difflib.get_close_matches(kind[:40], (*_SERVERS, *_DATABASES, "file"), n=1)
    raise ConfigError(
        f"run.tracking.uri={uri}: MLflow has no {scheme}: URIs; it takes http(s)://SERVER, sqlite:///FILE, "
        f"{', '.join(f'{name}://' for name in _DATABASES[1:])}, or a folder"
        + (f"; nearest: {near[0]}:{uri.partition(':')[2]}" if near else "")
    )
