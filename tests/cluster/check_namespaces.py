"""`brt train` and `brt doctor` over Ray nodes with different addresses, in network namespaces of this machine.

Run by `make -C tests/cluster nodes`, not by `make test`: it needs root, iproute2, and a kernel with namespaces.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from launch.nodes.ray_node import token_environment
from tests.cluster.namespaces import Machine, machines
from tests.end_to_end.conftest import CONFIG, ROOT, dataset, wait_for  # noqa: F401 - a fixture
from tests.end_to_end.test_submit import steps
from tests.unit.launch.test_model_commands import export

ON_PATH = {"PYTHONPATH": str(ROOT)}


@contextmanager
def ray_on(nodes: list[Machine], folder: Path, *, alone: int | None = None) -> Iterator[dict[str, str]]:
    """A Ray cluster over `nodes`; yields the environment of whoever joins.

    alone: this node gets its own empty file system over folder/run.
    """
    processes = []
    environment = {**os.environ, **token_environment(folder), "OMP_NUM_THREADS": "1"}
    (folder / "run").mkdir(exist_ok=True)
    try:
        for number, machine in enumerate(nodes):
            node = [sys.executable, "-m", "launch.nodes.ray_node", str(folder), "--node", str(number)]
            node += ["--interface", "node0"]
            if number == alone:
                hide = f'mount -t tmpfs none {folder}/run && exec "$@"'
                node = ["unshare", "--mount", "bash", "-c", hide, "-", *node]
            log = folder / f"node_{number}.out"
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    machine.command(*node), cwd=ROOT, env=environment, stdout=output, stderr=output
                )
            processes.append(process)
        wait_for((folder / "head").exists, "the head")
        yield environment
    finally:
        below = [child for one in processes for child in psutil.Process(one.pid).children(recursive=True)]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(120)
        assert not psutil.wait_procs(below, timeout=100)[1]


@pytest.fixture
def two() -> Iterator[list[Machine]]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(machines(2))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.fail(f"no network namespaces here ({said}): this needs root, iproute2 and a kernel that gives them")
        yield found


def test_training_over_two_addresses(two: list[Machine], dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(dataset=dataset, run=tmp_path / "run" / "here"))
    with ray_on(two, tmp_path) as environment:
        head = (tmp_path / "head").read_text()
        assert head.startswith(f"{two[0].address}:")
        train = [sys.executable, "-m", "launch.cli", "train", str(config), "--ray-address", head, "--json"]
        settings = ["launch.nodes=2", "run.steps=400"]
        process = subprocess.Popen(
            two[0].command(*train, *settings, "run.tracking.enabled=false"),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: len(steps(tmp_path / "run" / "here")) > 2 or process.poll() is not None, "the first steps")
            listening = [machine.listening() for machine in two]
        finally:
            out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    # While it trained: gcs_server, raylet, workers, dashboard's agent, driver, torch's store, gloo.
    for machine, found in zip(two, listening, strict=True):
        assert set(found) <= {machine.address, "127.0.0.1"} and len(found[machine.address]) > 3, found
    outcome = json.loads(out)
    assert (outcome["verdict"], outcome["step"]) == ("finished", 400)
    record = json.loads((tmp_path / "run" / "here" / "attempts" / "001" / "attempt.json").read_text())
    assert record["exit_codes"] == {"0": 0, "1": 0} and len(record["nodes"]) == 2


def test_an_evaluation_over_two_addresses_finds_what_one_process_finds(
    two: list[Machine],
    dataset: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from brt_dist.parallel.layout import single_process

    with single_process():
        model = export(tmp_path / "model", 5)
    monkeypatch.chdir(tmp_path)  # shared by the nodes
    evaluate = [
        sys.executable,
        "-m",
        "launch.cli",
        "eval",
        str(model),
        "--data",
        str(dataset),
        "--device",
        "cpu",
        "--json",
    ]
    alone = subprocess.run(evaluate, env=os.environ | ON_PATH, capture_output=True, text=True, check=True)
    with ray_on(two, tmp_path) as environment:
        head = (tmp_path / "head").read_text()
        for layout in (["parallel.data=2"], ["parallel.pipeline=2", "--streams", "4"]):
            done = subprocess.run(
                two[0].command(*evaluate, *layout, "launch.nodes=2", "--ray-address", head),
                env=environment | ON_PATH,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr + done.stdout
            for memory in ("carried", "cleared"):
                found, wanted = (
                    json.loads(one.stdout)["results"][0][memory]["bits_per_token"] for one in (done, alone)
                )
                assert found == pytest.approx(wanted, abs=1e-6)
    assert not list(tmp_path.glob(".brt-eval-*"))


def test_the_doctor_names_a_node_with_storage_of_its_own(two: list[Machine], tmp_path: Path) -> None:
    with ray_on(two, tmp_path, alone=1) as environment:
        head = (tmp_path / "head").read_text()
        doctor = [sys.executable, "-m", "launch.cli", "doctor", "--ray-address", head, "--json"]
        settings = ["launch.nodes=2", "parallel.data=2", "data.streams=2", f"run.directory={tmp_path}/run/here"]
        done = subprocess.run(
            two[0].command(*doctor, *settings),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    answer = json.loads(done.stdout)
    assert done.returncode == 18 and answer["seconds"] < 60
    (failed,) = [check for check in answer["checks"] if check["status"] == "failed"]
    assert failed["check"] == "shared storage" and two[1].address in failed["node"]


def test_the_doctor_finds_healthy_nodes_healthy_and_measures_them(two: list[Machine], tmp_path: Path) -> None:
    with ray_on(two, tmp_path) as environment:
        head = (tmp_path / "head").read_text()
        doctor = [sys.executable, "-m", "launch.cli", "doctor", "--ray-address", head, "--json"]
        settings = ["launch.nodes=2", "parallel.data=2", "data.streams=2", f"run.directory={tmp_path}/run/here"]
        command = two[0].command(*doctor, *settings)
        begin = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        print(f"{time.monotonic() - begin:.0f} s", done.stdout, done.stderr)
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["ok"] and answer["seconds"] < 60
    assert "GB/s" in next(check["message"] for check in answer["checks"] if check["check"] == "all-reduce")
