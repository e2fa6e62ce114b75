"""The model card of an export: how the loss fell, from the events of the run."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.export.card import model_card
from brt_dist.export.curve import MOST_POINTS, CurvePoint, curve_of
from brt_dist.export.weights import Weights


def run_with(folder: Path, *events: dict[str, Any]) -> Path:
    (folder / "checkpoints" / "step_00000030").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def step(number: int, bits: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "bits_per_token": bits}


def evaluation(number: int, bits: float, memory: str = "carried") -> dict[str, Any]:
    return {"event": "evaluation", "step": number, "dataset": "validation", "memory": memory, "bits_per_token": bits}


def test_the_curve_ends_at_the_checkpoint_and_a_repeated_step_counts_as_it_was_last(tmp_path: Path) -> None:
    events = [step(10, 5.0), step(20, 4.5), evaluation(20, 4.8), evaluation(20, 9.0, "cleared"), step(20, 4.0)]
    run = run_with(tmp_path, *events, step(30, 3.0), evaluation(30, 3.5), step(40, 2.0), evaluation(40, 2.5))
    expected = (CurvePoint(20, 4.0, 4.8), CurvePoint(30, 3.0, 3.5))
    for source in (run, run / "checkpoints", run / "checkpoints" / "step_00000030"):
        assert curve_of(str(source), 30) == expected
    assert curve_of(str(tmp_path.parent), 30) == () and curve_of("s3://bucket/run", 30) == ()


def test_a_long_curve_is_thinned_out_and_keeps_its_end(tmp_path: Path) -> None:
    run = run_with(tmp_path, *(step(number, 1000.0 - number) for number in range(1, 501)))
    found = curve_of(str(run), 400)
    assert len(found) == MOST_POINTS and found[-1] == CurvePoint(400, 600.0, None)
    gaps = [after.step - before.step for before, after in pairwise(found)]
    assert max(gaps) - min(gaps) <= 1


def test_the_card_has_the_curve_and_names_the_config() -> None:
    model = ModelConfig.model_validate({"layers": 1, "mixers": {"window": {}}, "vocab_size": 9})
    weights = Weights("here", model, {"w": (2, 3)}, lambda name: torch.zeros(2, 3))
    assert "## Training" not in model_card(weights)
    told = Weights(
        "here", model, weights.shapes, weights.read, config={"run": {}}, curve=lambda: (CurvePoint(1000, None, 2.5),)
    )
    card = model_card(told)
    assert "| 1,000 |  | 2.5000 |" in card and "config.yaml" in card
