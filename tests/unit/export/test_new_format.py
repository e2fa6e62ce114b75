"""A format of weights is one file and one line of a table: a new one is written, read and named in the help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]
# One JSON file with every number in it.
NUMBERS = """
import json
from contextlib import contextmanager

from brt_dist.export.formats.base import WeightFormat
from brt_dist.files import write_atomic


class Numbers(WeightFormat):
    about = "one file of JSON with every number"

    @classmethod
    def recognizes(cls, path):
        return path.suffix == ".json"

    @classmethod
    @contextmanager
    def open(cls, path, model, *, verify):
        import torch

        from brt_dist.config.schema import ModelConfig
        from brt_dist.export.weights import Weights

        found = json.loads(path.read_text())
        tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in found["tensors"].items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        model = ModelConfig.model_validate_json(json.dumps(found["model"]))
        yield Weights(str(path), model, shapes, tensors.__getitem__)

    @classmethod
    def write(cls, weights, out, shard_bytes=0):
        tensors = {name: weights.read(name).tolist() for name in weights.shapes}
        write_atomic(out, json.dumps({"model": weights.model.model_dump(mode="json"), "tensors": tensors}))
        return [out.name]
"""
# What the line in brt_dist/kinds.py does.
BRT = """
import brt_dist.kinds as kinds
kinds.WEIGHT_FORMATS._places["numbers"] = "numbers_format:Numbers"
from launch.cli import main
main()
"""


def brt(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    (folder / "numbers_format.py").write_text(NUMBERS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", BRT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_new_format_is_written_read_and_named(tmp_path: Path) -> None:
    golden = ROOT / "tests" / "golden" / "data" / "fixed_skip.npz"
    written = brt(tmp_path, "export", golden, "--to", "numbers", "--out", tmp_path / "all.json", "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["files"] == ["all.json"]
    back = brt(tmp_path, "export", tmp_path / "all.json", "--to", "reference", "--out", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    before, after = np.load(golden), np.load(tmp_path / "back" / "model.npz")
    names = [name for name in before.files if name.startswith("param/")]
    assert names and sorted(names) == sorted(after.files)
    for name in names:
        assert before[name].tobytes() == after[name].tobytes(), name
    assert "one file of JSON with every number" in brt(tmp_path, "export", "--help").stdout
