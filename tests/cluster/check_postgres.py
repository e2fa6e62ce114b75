"""The syncer against an MLflow server whose store is a real PostgreSQL: `make -C tests/cluster postgres`.

Not in `make test`: it needs PostgreSQL's programs, and psycopg2 in the environment.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

from tests.mlflow_server import mlflow_server
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
STEPS, METRICS = 10_000, 12


def test_10_000_steps_arrive_once_in_postgresql(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    port = free_port()
    tracking = f"{{uri: 'http://127.0.0.1:{port}'}}"
    (run / "config.yaml").write_text(
        f"data: {{dataset: {tmp_path}}}\nrun: {{directory: {run}, steps: {STEPS}, tracking: {tracking}}}\n"
        "optimizer: {warmup_steps: 2}\n"
    )
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(1, STEPS + 1):
            values = {f"value_{number}": step + number / 100 for number in range(METRICS)}
            file.write(
                json.dumps({"event": "parts", "time": 1000.0 + step, "attempt": 1, "step": step, **values}) + "\n"
            )
        file.write(json.dumps({"event": "end", "time": 2e4, "attempt": 1, "exit_code": 0}) + "\n")
    with postgresql() as uri, mlflow_server(tmp_path / "server", port, store=uri):
        command = [sys.executable, "-m", "launch.tracking.syncer", str(run)]
        process = subprocess.Popen(command, cwd=ROOT)  # killed in the middle, and again as if nothing had been recorded
        state = run / "tracking" / "state.json"
        while not state.exists() or json.loads(state.read_text())["offset"] < 200_000:
            assert process.poll() is None
        process.kill()
        process.wait()
        for _ in range(2):
            subprocess.run(command, cwd=ROOT, check=True)
            state.write_text(json.dumps({**json.loads(state.read_text()), "offset": 0, "sent": {}}))
        with psycopg2.connect(uri.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT key, step, value, timestamp FROM metrics ORDER BY key, step")
            found = cursor.fetchall()
            cursor.execute("SELECT status FROM runs")
            assert cursor.fetchall() == [("FINISHED",)]
    expected = [
        (f"system/step/value_{number}_seconds", step, step + number / 100, (1000 + step) * 1000)
        for number in range(METRICS)
        for step in range(1, STEPS + 1)
    ]
    assert sorted(found) == sorted(expected)


@contextmanager
def postgresql() -> Iterator[str]:
    """Yields the URI of an empty database; its server, which root runs as `postgres`, is stopped afterwards.

    It has a folder of its own: another pytest may make that of all tests private.
    """
    with tempfile.TemporaryDirectory(prefix="brt-postgres-") as folder:
        yield from _serve(Path(folder))


def _serve(folder: Path) -> Iterator[str]:
    programs = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = shutil.which("initdb")
    bin_folder = programs[-1] if programs else Path(found or "initdb").parent
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, **user)
    data, port = folder / "data", free_port()
    init = [bin_folder / "initdb", "-D", data, "-A", "trust", "-U", "brt"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **user)
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    control = [bin_folder / "pg_ctl", "-D", data, "-l", folder / "log", "-w"]
    subprocess.run([*control, "-o", options, "start"], check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)
    try:
        yield f"postgresql+psycopg2://brt@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)
