"""Fixtures of the launcher's tests: a small dataset, and a Ray cluster of two nodes on this machine."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 300.0  # Ray alone can take a minute on a busy machine

CONFIG = """\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{dataset: {dataset}, segment: 16, streams: 4}}
parallel: {{data: 2}}
optimizer: {{warmup_steps: 2}}
run: {{name: "a 'tiny' run", directory: {run}, steps: 6, precision: fp32, device: cpu}}
"""


def wait_for(condition: Callable[[], object], what: str, pause_seconds: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE_SECONDS} s for {what}")
        time.sleep(pause_seconds)


BRT = str(Path(sys.executable).with_name("brt"))
SHADOWS = ("launch", "pipelines", "brt_dist", "random", "ray", "torch", "mlflow", "tests")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working folder with user files that have the names of our modules and of others."""
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py was imported')\n")
    return folder


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"This is document {number}. " * 40)
    out = folder / "dataset"
    command = [sys.executable, "-m", "launch.cli", "data", "build", str(folder), "--out", str(out)]
    subprocess.run([*command, "--tokenizer", "bytes", "--workers", "0"], check=True, cwd=ROOT, capture_output=True)
    return out


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(dataset=dataset, run=tmp_path / "run with 'quotes'"))
    return path


@dataclass
class Cluster:
    """address: for launch.ray_address; environment: of whoever joins."""

    address: str
    environment: dict[str, str]
    processes: list["subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two Ray nodes; both on this machine, so they have one address, but placement takes them as two."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_METRICS_COLLECTION": "0",
    }
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    address = ""
    processes = []
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=2", "--disable-usage-stats"]
    size = f"--object-store-memory={80 * 2**20}"
    try:
        for part in ([f"--port={port}", "--head", "--include-dashboard=false"], None):
            log = folder / f"{len(processes)}.log"
            options = part or [f"--address={address}"]
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    [*ray, size, *options], env=environment, stdout=output, stderr=output, start_new_session=True
                )
            processes.append(process)
            wait_for(lambda log=log: "Ray runtime started" in log.read_text(), "a Ray node")
            if part:
                found = re.search(r"Local node IP.*?((?:\d+\.){3}\d+)", log.read_text())  # with colours before it
                assert found is not None
                address = f"{found[1]}:{port}"
        yield Cluster(address, environment, processes)
    finally:
        # Not `ray stop`, which would end other clusters too; and SIGTERM lets a node drain for half a minute.
        parents = [psutil.Process(process.pid) for process in processes if process.poll() is None]
        for one in [child for parent in parents for child in parent.children(recursive=True)] + parents:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        for process in processes:
            process.wait(30)
