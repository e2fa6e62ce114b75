"""A real MLflow server on this machine, with or without passwords, that can be killed and started again."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 120.0
ADMIN = ("admin", "a password of 12 letters or more")

_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@contextmanager
def mlflow_server(folder: Path, port: int, *, store: str | None = None, passwords: bool = False) -> Iterator[str]:
    """Yields its URI; killed at the end.

    store: URI of its database, a SQLite file in `folder` by default.  passwords: only ADMIN may use it.
    """
    folder.mkdir(exist_ok=True)
    places = [f"--backend-store-uri={store or f'sqlite:///{folder}/server.db'}"]
    places += [f"--artifacts-destination={folder}/artifacts"]
    # without the processes for jobs, which nothing here needs
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if passwords:
        (folder / "auth.ini").write_text(_AUTH.format(folder=folder, user=ADMIN[0], password=ADMIN[1]))
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")
        environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(16)
        places += ["--app-name=basic-auth"]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *places]
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
