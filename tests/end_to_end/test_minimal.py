"""examples/minimal.py: one script that learns, on one process and under torchrun."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "minimal.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "speeches.txt"
    lines = (ROOT / "tests" / "data" / "speeches.jsonl").read_text().splitlines()
    path.write_text("\n".join(json.loads(line)["text"] for line in lines))
    return path


def run(launcher: tuple[str, ...], text: Path, out: Path, steps: int) -> str:
    command = [*launcher, str(SCRIPT), str(text), "--steps", str(steps), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output: str) -> list[float]:
    """Nats per byte."""
    return [float(loss) for loss in re.findall(r"loss (\S+)", output)]


def test_it_learns_more_than_the_frequencies_of_letters(text: Path, tmp_path: Path) -> None:
    output = run((sys.executable,), text, tmp_path / "model", steps=80)
    counts = Counter(text.read_bytes())
    frequencies = [count / counts.total() for count in counts.values()]
    entropy = -sum(frequency * math.log2(frequency) for frequency in frequencies)
    assert losses(output)[-1] / math.log(2) < entropy - 0.5
    held_out = dict(re.findall(r"memory (\w+): (\S+) bits/byte", output))
    assert held_out.keys() == {"carried", "cleared"}
    assert all(float(bits) < entropy - 0.5 for bits in held_out.values())
    assert held_out["carried"] != held_out["cleared"], "the memory is used"
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_weights_that_are_there_are_not_overwritten_and_nothing_is_trained(text: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    command = [sys.executable, str(SCRIPT), str(text), "--out", str(tmp_path / "model")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 2 and "model exists; choose another folder with --out" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_two_processes_train_the_same_model(text: Path, tmp_path: Path) -> None:
    from brt_dist.export.load import load_model
    from brt_dist.parallel.layout import single_process

    one = losses(run((sys.executable,), text, tmp_path / "one", steps=20))
    two = losses(run(TORCHRUN, text, tmp_path / "two", steps=20))
    assert len(one) == 3 and one[-1] < one[0] - 2
    assert two == pytest.approx(one, abs=1e-4)
    with single_process():
        models = [dict(load_model(str(tmp_path / name)).named_parameters()) for name in ("one", "two")]
        for name, values in models[0].items():
            # in norm: Adam moves single weights by the learning rate where rounding decides the sign of a gradient
            assert (values - models[1][name]).norm() < 2e-3 * values.norm(), name
