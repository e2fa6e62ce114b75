"""`brt submit --backend slurm` on a real Slurm with two nodes: preempted, requeued, stopped, resumed, finished; sweeps.

Run by `make -C tests/cluster slurm`, not by `make test`: it needs root and the Debian packages of Slurm.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brt_dist.event_log import events_of
from brt_dist.events import AttemptEvent, StepEvent
from tests.cluster.slurm import idle_nodes, slurm
from tests.end_to_end.conftest import ROOT, dataset  # noqa: F401 - a fixture

CONFIG = """\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{dataset: {dataset}, segment: 16, streams: 4}}
parallel: {{data: 2}}
optimizer: {{warmup_steps: 2}}
run: {{name: "a 'tiny' $(run)", directory: {run}, steps: 100000, precision: fp32, device: cpu,
  checkpoint_every: 1000000, tracking: {{enabled: false}}}}
launch: {{backend: slurm, nodes: 2, slurm: {{cpus_per_node: 1, notice_seconds: 60}}}}
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield {**os.environ, **found}


def brt(variables: dict[str, str], *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "launch.cli", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def steps(run: Path) -> list[int]:
    return [event.step for event in events_of(run, StepEvent)]


def wait(condition: Callable[[], object], what: str, variables: dict[str, str], folder: Path) -> None:
    """Wait for a condition; if it never holds, fail with what Slurm and the jobs below a folder say."""
    deadline = time.monotonic() + 400
    while not condition():
        if time.monotonic() > deadline:
            said = "".join(path.read_text() for path in folder.glob("**/submissions/*/log"))
            for known in ("job", "node"):
                words = ["scontrol", "show", known]
                said += subprocess.run(words, env=variables, check=False, capture_output=True, text=True).stdout
            pytest.fail(f"waited in vain for {what}; the job said:\n{said}")
        time.sleep(0.5)


def test_a_run_on_two_slurm_nodes(dataset: Path, tmp_path: Path, variables: dict[str, str]) -> None:  # noqa: F811
    run = tmp_path / "run with 'quotes' $(touch oops)"
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(dataset=dataset, run=json.dumps(str(run))))

    def wait_for(condition: Callable[[], object], what: str) -> None:
        wait(condition, what, variables, run)

    def state() -> str:
        return str(brt(variables, "status", str(run))["submission"]["state"])

    made = brt(variables, "submit", str(config))["submission"]
    wait_for(lambda: len(steps(run)) > 3, "the first steps")
    record = json.loads((run / "attempts" / "001" / "attempt.json").read_text())
    assert len(record["nodes"]) == 2
    assert (run / "submissions" / "001" / "token").stat().st_mode & 0o777 == 0o600

    # Preempted: Slurm's notice is SIGTERM to the script.  The run saves, and the same job is requeued.
    subprocess.run(["scancel", "--batch", "--signal=TERM", made["job"]], env=variables, check=True)
    wait_for(lambda: "requeued" in "".join((run / "submissions/001/log").read_text()), "the job to be requeued")
    saved = max(steps(run))
    # A start within the second in which the job was killed is mistaken for the old one and refused ("already killed").
    wait_for(lambda: idle_nodes(variables) == 2, "the old start to be gone")
    time.sleep(3)
    begin = ["scontrol", "update", f"JobId={made['job']}", "StartTime=now"]  # Slurm holds it back for two minutes

    def goes_on() -> bool:
        """Repeated: Slurm sets the time once the old start has ended, which may be later."""
        subprocess.run(begin, env=variables, check=False, capture_output=True)
        return max(steps(run)) > saved

    wait_for(goes_on, "steps after the requeue")
    attempts = events_of(run, AttemptEvent)
    assert [event.start_step for event in attempts] == [0, saved]

    # Stopped by the user: saved, and not requeued.
    assert "save and stop" in brt(variables, "stop", str(run))["done"]
    wait_for(lambda: state() == "ended", "the job to end")
    assert brt(variables, "status", str(run))["verdict"] == "preempted"

    # Resumed, with a near end.
    last = max(steps(run))
    again = brt(variables, "resume", str(run), f"run.steps={last + 5}")["submission"]
    assert again["job"] != made["job"]
    wait_for(lambda: state() == "ended", "the resumed job to end")
    found = brt(variables, "status", str(run))
    assert (found["verdict"], found["step"]) == ("finished", last + 5)
    assert not list(run.glob("submissions/*/token")) and not (ROOT / "oops").exists()
    assert "finished" in brt(variables, "logs", str(run))["log"]


def test_a_sweep_is_one_job_array(dataset: Path, tmp_path: Path, variables: dict[str, str]) -> None:  # noqa: F811
    """Two of four runs at a time; one is taken out of the queue, and the same command submits it again."""
    folder = tmp_path / "a sweep's $(runs)"
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(dataset=dataset, run=json.dumps(str(folder))))
    settings = ["launch.nodes=1", "parallel.data=1", "launch.slurm.at_once=2", "run.steps=30"]
    draws = ["--random", "optimizer.learning_rate=0.0001..0.01", "--count", "4"]

    def sweep() -> dict[str, dict[str, Any]]:
        """Submit the runs that are left; returns the last submission of each run."""
        command = [sys.executable, "-m", "launch.cli", "sweep", str(config), *settings, *draws, "--submit", "--json"]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert "runs" in json.loads(done.stdout), done.stderr + done.stdout
        return {run.name: brt(variables, "status", str(run))["submission"] for run in runs()}

    def runs() -> list[Path]:
        return sorted(path.parent for path in folder.glob("*/config.yaml"))

    def states() -> list[str]:
        return [str(brt(variables, "status", str(run))["submission"]["state"]) for run in runs()]

    first = sweep()
    assert len({record["job"].partition("_")[0] for record in first.values()}) == 1
    assert {record["job"].partition("_")[2] for record in first.values()} == {"0", "1", "2", "3"}
    wait(lambda: states().count("running") == 2, "two tasks at a time", variables, folder)
    assert states().count("queued") == 2
    queued = runs()[states().index("queued")]
    assert "removed from the queue" in brt(variables, "stop", str(queued))["done"]
    wait(lambda: set(states()) == {"ended"}, "the array to end", variables, folder)
    told = {run.name: brt(variables, "status", str(run)) for run in runs()}
    assert sorted(found["step"] for found in told.values()) == [0, 30, 30, 30], told
    again = sweep()
    assert {name for name in again if again[name]["job"] != first[name]["job"]} == {queued.name}
    wait(lambda: set(states()) == {"ended"}, "the last run to end", variables, folder)
    assert brt(variables, "status", str(queued))["verdict"] == "finished"
