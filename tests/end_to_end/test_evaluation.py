"""`brt eval` of one model on one process and on the ranks of layouts: the same numbers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import make_dataset
from tests.end_to_end.conftest import BRT
from tests.unit.launch.test_model_commands import export

pytestmark = pytest.mark.slow

TEXTS = [f"Document {number}. " * (3 + 7 * number % 23) for number in range(9)]
LAYOUTS = (
    ("parallel.tensor=2", "--streams", "4"),
    ("parallel.pipeline=2", "--streams", "6", "--segment", "16"),
    ("parallel.data=2", "--streams", "2", "--segment", "8"),
)


def evaluated(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    command = [BRT, "eval", *map(str, arguments), "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_layout_finds_the_same(tmp_path: Path) -> None:
    from brt_dist.parallel.layout import single_process

    with single_process():
        model = export(tmp_path / "model", 5)
    dataset = make_dataset(tmp_path, TEXTS).folder
    (tmp_path / "notes.txt").write_text("A text of its own, which is tokenized on the fly. " * 3)
    places = ("--data", dataset, "--data", tmp_path / "notes.txt")
    one = evaluated(model, *places, "--parts")
    for layout, *options in LAYOUTS:
        other = evaluated(model, layout, *places, *options, "--parts")
        for mine, known in zip(other["results"], one["results"], strict=True):
            assert (mine["tokens"], mine["words"]) == (known["tokens"], known["words"])
            # memory that is carried does not depend on segments
            assert mine["carried"]["bits_per_token"] == pytest.approx(known["carried"]["bits_per_token"], abs=1e-6)
            nats = [document["nats"] for document in known["carried"]["documents"]]
            assert [document["nats"] for document in mine["carried"]["documents"]] == pytest.approx(nats, rel=1e-5)
            assert mine["layers"][0].keys() == known["layers"][0].keys()
        if "--segment" not in options:
            mine, known = other["results"][1], one["results"][1]  # one document, cleared at the same places
            for memory in ("cleared", "state cleared", "cache cleared"):
                assert mine[memory]["bits_per_token"] == pytest.approx(known[memory]["bits_per_token"], abs=1e-6)
                assert mine[memory]["bits_per_token"] != mine["carried"]["bits_per_token"]


def test_what_fails_on_a_rank_is_told_once(tmp_path: Path) -> None:
    from brt_dist.parallel.layout import single_process

    with single_process():
        model = export(tmp_path / "model", 5)
    dataset = make_dataset(tmp_path, TEXTS).folder
    weights = next(model.glob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    found = evaluated(model, "parallel.data=2", "--data", dataset, code=12)
    assert "model.safetensors" in found["error"]
