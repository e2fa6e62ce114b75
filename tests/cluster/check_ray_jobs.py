"""`brt submit --backend ray` on a real Ray head, by its job submission API.  Run by `make -C tests/cluster nodes`."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launch.nodes.ray_node import token_environment
from tests.end_to_end.conftest import ROOT, config, dataset, wait_for  # noqa: F401 - fixtures
from tests.end_to_end.test_submit import call, run_folder, through_its_life


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Ray head that takes jobs; yields the URL of its dashboard and the file of its token."""
    folder = tmp_path / "ray"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "launch.nodes.ray_node", str(folder), "--node", "0"]
    command += ["--dashboard", "--dashboard-port", str(port)]
    # How long Ray lets a job save after `stop`; its default is three seconds.
    environment = {**os.environ, **token_environment(folder), "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_for(lambda: (folder / "head").exists() or process.poll() is not None, "the head")
        host = (folder / "head").read_text().partition(":")[0]
        yield f"http://{host}:{port}", folder / "token"
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(120)
        assert not psutil.wait_procs(below, timeout=100)[1]


def test_jobs_of_a_ray_cluster(config: Path, head: tuple[str, Path], tmp_path: Path) -> None:  # noqa: F811
    address, token = head
    settings = ["launch.backend=ray", f"launch.ray.jobs_address={address}", f"launch.ray.working_directory={ROOT}"]
    settings += [f"launch.ray.python={sys.executable}"]
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    refused = call("submit", str(config), *settings, f"launch.ray.token_file={wrong}")
    assert refused.returncode == 18 and "does launch.ray.token_file hold the cluster's token?" in refused.stderr
    through_its_life(config, ROOT, *settings, f"launch.ray.token_file={token}")
    assert token.read_text() not in "".join(
        path.read_text(errors="replace") for path in run_folder(config).rglob("*") if path.is_file()
    )
