"""`brt eval` of one model on one process and on the ranks of layouts: the same numbers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.tracking.names import evaluated as evaluated_name
from launch.tracking.names import metric
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


RUN = """\
model: {{layers: 1, width: 24, heads: 2, head_dim: 8, window: 8, dropout: 0.0, mixers: {{lstm: {{}}}},
  ffns: {{relu: {{width: 24}}}}, objective: oracle, oracle: {{language: dyck, depth: 3, slots: 3}}}}
data: {{dataset: {data}, validation: {held_out}, segment: 16, streams: 4}}
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 2}}
run: {{name: tiny, directory: {run}, steps: 8, precision: fp32, device: cpu, evaluation_steps: 99}}
"""
SHARES = ("legal", "legal_words", "state_accuracy", "stack_accuracy")


def brt(*arguments: str | Path) -> None:
    done = subprocess.run([BRT, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_legal_is_told_of_a_formal_language(tmp_path: Path) -> None:
    """From the corpus to MLflow, as training reports it at its end; for other text only the reason is given."""
    from mlflow import MlflowClient

    options = ("--language", "dyck", "--types", "2", "--depth", "3", "--length", "20", "--words", "60")
    brt("data", "corpus", "cfg", "--out", tmp_path / "dyck", *options, "--held-out", "20")
    data, held_out, run = tmp_path / "data", tmp_path / "held out", tmp_path / "runs" / "tiny"
    for part, out in (("train", data), ("validation", held_out)):
        brt("data", "build", tmp_path / "dyck" / part, "--out", out, "--tokenizer", "bytes", "--workers", "0")
    (tmp_path / "run.yaml").write_text(RUN.format(data=data, held_out=held_out, run=run))
    brt("train", tmp_path / "run.yaml")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    told = {one["memory"]: one for one in lines if one["event"] == "evaluation" and one["dataset"] == "validation"}

    notes = tmp_path / "notes.txt"
    notes.write_text("no brackets")
    places = ("--data", held_out, "--data", notes, "--streams", "4", "--segment", "16")
    one, other = evaluated(run, *places, "--track")["results"]
    for memory in ("carried", "cleared"):
        assert [one[memory][name] for name in SHARES] == [told[memory][name] for name in SHARES]
    assert 0 < one["carried"]["legal"] < 1 and "legality_left_out" not in one
    assert "legal" not in other["carried"] and other["carried"]["bits_per_token"] > 0
    assert other["legality_left_out"].startswith("document 0: model.oracle.language=dyck: a document is not a word")

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "brt"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    for dataset in ("validation", str(held_out)):  # training's, and this one
        for memory in ("carried", "cleared"):
            name = metric("evaluation.legal", data=evaluated_name(dataset, memory))
            assert tracked.data.metrics[str(name)] == one[memory]["legal"], name

    for layout in ("parallel.tensor=2", "parallel.data=2"):
        split = evaluated(run, layout, *places)["results"][0]
        for memory in ("carried", "cleared"):
            assert split[memory]["bits_per_token"] == pytest.approx(one[memory]["bits_per_token"], abs=1e-6)
            shares = [one[memory][name] for name in SHARES]
            assert [split[memory][name] for name in SHARES] == pytest.approx(shares, abs=2 / one["tokens"])

    command = [BRT, "eval", str(run), *map(str, places), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "legal predictions" in shown and f"{one['carried']['legal']:.4f}" in shown
    assert "no share of legal predictions: document 0: " in shown
