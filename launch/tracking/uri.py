"""Tracking URIs: the default one, and what of a URI may be shown."""

import hashlib
import re
import shlex
from pathlib import Path

from brt_dist.config.schema import TrackingConfig

# Up to the last @, also over a / that a password should not hold: rather too much hidden than too little.
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:token|password|passwd|secret|key|key_id|credential|sig|signature))=)[^&;#\s]+"
)


def tracking_folder(run: Path) -> Path:
    return run / "tracking"


def tracking_uri(tracking: TrackingConfig, run: Path) -> str:
    """The URI that was given, or a SQLite file in the run directory."""
    return tracking.uri or f"sqlite:///{tracking_folder(run).absolute() / 'mlflow.db'}"


def redact(text: str) -> str:
    """`text` without the user names, passwords and tokens of all URIs in it."""
    return _SECRET_PARAMETER.sub(r"\1***", _CREDENTIALS.sub(r"\g<scheme>***@", text))


def fingerprint(uri: str) -> str:
    """Tells one tracking server from another without keeping its URI."""
    return hashlib.sha256(_CREDENTIALS.sub(r"\g<scheme>", uri).encode()).hexdigest()[:16]


def page_command(tracking: TrackingConfig, run: Path) -> str:
    """What a user types to see the run in MLflow's page; a server has its own page."""
    if tracking.uri is not None and "://" in tracking.uri and not tracking.uri.startswith(("sqlite:", "file:")):
        return f"open {redact(tracking.uri)}"
    uri = redact(tracking_uri(tracking, run))
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"
