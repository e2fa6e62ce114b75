"""`brt resume` before anything is started: which checkpoint it takes, and which changes it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.config.loading import Resolved, load
from launch.run.config_file import absolute, write_config
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset

ROOT = Path(__file__).parents[3]
CONFIG = """\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{dataset: {dataset}, segment: 16, streams: 2}}
optimizer: {{warmup_steps: 2}}
run: {{directory: {run}, steps: 6, precision: fp32, device: cpu}}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"Document {number}. " * 9 for number in range(8)]
    return make_dataset(tmp_path_factory.mktemp("data"), texts).folder


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Path:
    """A run with checkpoints of steps 2, 4 and 6; the newest is damaged."""
    folder = tmp_path / "run"
    found = load(CONFIG.format(dataset=dataset, run=folder), [])
    folder.mkdir()
    write_config(folder, Resolved(absolute(found.config), found.provenance))
    storage = FolderStorage(folder / "checkpoints")
    for step in (2, 4, 6):
        make_checkpoint(storage, step)
    (folder / "checkpoints/step_00000006/weights/embedding.safetensors").unlink()
    return folder


def resume(run: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "launch.cli", "resume", str(run), *words, "--dry-run", "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_takes_the_newest_that_is_whole_and_names_the_others(run: Path) -> None:
    done = resume(run, "run.steps=9")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["checkpoint"] == "step_00000004"
    (passed_over,) = answer["passed_over"]
    assert passed_over.startswith("step_00000006: ") and "embedding.safetensors is missing" in passed_over
    assert str(run) in answer["would_apply"]


def test_every_change_that_would_make_it_another_run_is_listed(run: Path, dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", ["other text " * 20] * 8).folder
    changed = (f"data.dataset={other}", "data.streams=4", "run.seed=1", "model.vocab_size=256", "parallel.data=2")
    done = resume(run, *changed)
    assert done.returncode == 10
    for key in ("data.dataset", "data.streams", "run.seed", "model.vocab_size"):
        assert f"- {key}: " in done.stderr
    assert "parallel.data" not in done.stderr and "Traceback" not in done.stderr
    allowed = resume(run, "data.streams=4", "run.seed=1", "--allow", "data.streams", "--allow", "run.seed")
    assert allowed.returncode == 0, allowed.stderr
    never = resume(run, "model.vocab_size=256", "--allow", "model.vocab_size")
    assert never.returncode == 10 and "cannot change" in never.stderr


def test_a_dry_run_leaves_the_run_as_it_is(run: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert resume(run, "run.steps=9").returncode == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
