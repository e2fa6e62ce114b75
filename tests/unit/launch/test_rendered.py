"""What `brt submit --dry-run` prints for a config of each cluster, as files, so that reviews show any change.

`python -m tests.unit.launch.test_rendered` rewrites them.
"""

import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from brt_dist.config.loading import load
from brt_dist.kinds import BACKENDS
from launch.backends.job import Job
from tests.cluster.kuberay import CONFIG

FOLDER = Path(__file__).parent / "rendered"
SLURM = """\
data: {dataset: /data/train}
run: {name: books, directory: /runs/books, steps: 5000, device: cuda}
parallel: {data: 16}
launch:
  backend: slurm
  nodes: 2
  time_limit: "1-12:00:00"
  slurm:
    partition: gpu
    gpus: gres
    gpu_type: h100
    cpus_per_node: 96
    mail: me@example.org
    setup: [module load cuda/12.8]
    container: [apptainer, exec, --nv, /images/brt.sif]
    python: /opt/brt/bin/python
    interface: ib0
"""
CONFIGS = {"slurm": SLURM, "kubernetes": CONFIG}


def rendered(name: str) -> str:
    """Without what depends on this machine."""
    text = BACKENDS[name]().render(Job(load([CONFIGS[name]]).config, 1, created=0))
    if name == "kubernetes":
        text = _without_config(text)
    return text.replace(os.getcwd(), "/here").replace(version("ray"), "RAY-VERSION")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_submitted(name: str) -> None:
    assert rendered(name) == (FOLDER / f"{name}.txt").read_text()


def test_the_shell_script_is_one() -> None:
    script = rendered("slurm").partition("\n")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert script.splitlines()[2] == "set -eo pipefail" and "\nset -u" in script


def test_the_task_for_skypilot_is_one() -> None:
    task = yaml.safe_load((Path(__file__).parents[3] / "cluster" / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
        assert task[part].startswith("set -euo pipefail\n")
    words = shlex.split(task["run"].partition("brt train ")[2].replace("\\\n", " "))
    settings = [word.replace("$SKYPILOT_NUM_GPUS_PER_NODE", "8").replace("$BUCKET", "s3://b") for word in words[1:]]
    config = load([Path(__file__).parents[3] / task["envs"]["CONFIG"]], settings).config
    assert config.parallel.data == 8 and config.run.checkpoints == "s3://b/checkpoints/spot"
    assert task["resources"]["use_spot"] is True


def _without_config(text: str) -> str:
    """The config in it has its own tests, and grows with each new key."""
    settings, job = yaml.safe_load_all(text)
    settings["data"] = {}
    return yaml.safe_dump_all([settings, job])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in CONFIGS:
        (FOLDER / f"{name}.txt").write_text(rendered(name))
    print("written", *CONFIGS, file=sys.stderr)
