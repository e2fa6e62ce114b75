"""Runs of version 0.1.0 are read, and resume as with the old code (tests/data/runs_of_0_1_0/README.md).

The variables of ENVIRONMENT pin the arithmetic as far as it goes on x86-64: no vector units beyond SSE2 in torch's
kernels, MKL's results that all processors share, one thread.  On processors like the one that made the data the numbers
are then equal bit for bit; others (tried: one with AMX) differ from it in the eighth digit, with the old code too.
So numbers are compared to six digits here, and all else exactly.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from brt_dist.event_log import EventReader
from brt_dist.events import to_json
from launch.cli import brt
from tests.data.runs_of_0_1_0.make import ENVIRONMENT, MORE_STEPS, STEPS

DATA = Path(__file__).parents[1] / "data" / "runs_of_0_1_0"
ROOT = Path(__file__).parents[2]
RUNS = ("adamw", "adafactor")
TIMES = {"time", "seconds", "stall_seconds", "step_seconds", "data_wait_seconds", "tokens_per_second"}
SIZES = {"peak_memory_bytes"}  # of the process, so of the libraries too


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    """A copy of the run stopped after step 4, which knows where it is now."""
    shutil.copytree(DATA / "dataset", tmp_path / "dataset")
    copy = Path(shutil.copytree(DATA / name / "run", tmp_path / name / "run"))
    config = copy / "config.yaml"
    text = config.read_text()
    made_in = Path(yaml.safe_load(text)["run"]["directory"]).parents[1]
    config.write_text(text.replace(str(made_in), str(tmp_path)))
    return copy


def answer(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(brt, [str(word) for word in (*words, "--json")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def lines(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events as they are in the file, without what depends on the clock or the machine."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in event.items() if key not in TIMES | SIZES}
        for event in events
        if event["event"] in kinds
    ]


def test_status_tells_where_the_run_stands(run: Path, name: str) -> None:
    found = answer("status", run)
    assert (found["verdict"], found["step"], found["steps"]) == ("finished", STEPS, STEPS)
    assert found["checkpoint"] == "checkpoints/step_00000004"
    (last,) = lines(run / "metrics.jsonl", "step")[-1:]
    assert found["last_step"].items() >= last.items()
    assert len(found["evaluations"]) == len(lines(run / "metrics.jsonl", "evaluation"))
    verdicts = [attempt["verdict"] for attempt in found["attempts"]]
    assert verdicts == {"adamw": ["finished"], "adafactor": ["lost_node", "finished"]}[name]
    assert name == "adamw" or "SIGKILL" in found["attempts"][0]["reason"]


def test_a_report_is_written_of_it(run: Path, name: str) -> None:
    page = Path(answer("report", run)["report"]).read_text()
    carried = lines(run / "metrics.jsonl", "evaluation")[0]["bits_per_token"]
    assert f"{carried:.3f}" in page
    assert name == "adamw" or "killed (SIGKILL)" in page


def test_events_are_read_as_they_were_written(run: Path) -> None:
    reader = EventReader(run)
    found = [to_json(event) for event in reader.read()]
    assert found == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert reader.offset == (run / "metrics.jsonl").stat().st_size


def test_checkpoints_are_verified_and_shown(run: Path, name: str) -> None:
    assert answer("checkpoint", "verify", run)["ok"]
    found = answer("checkpoint", "show", run)
    manifest = json.loads((run / "checkpoints" / "step_00000004" / "manifest.json").read_text())
    assert {key: found[key] for key in ("step", "updates", "tokens", "evaluations", "dataset", "versions")} == {
        key: manifest[key] for key in ("step", "updates", "tokens", "evaluations", "dataset", "versions")
    }
    assert found["tensors"].keys() == manifest["tensors"].keys()


def test_weights_are_exported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert answer("export", run, "--to", "safetensors", "--out", out)["step"] == STEPS
    saved = tensors(run / "checkpoints" / "step_00000004", "weights")
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[tensor], value) for tensor, value in saved.items())


@pytest.mark.slow
def test_resumed_it_ends_as_the_old_code_ended(run: Path, name: str) -> None:
    command = [sys.executable, "-m", "launch.cli", "train", str(run / "config.yaml"), f"run.steps={MORE_STEPS}"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr

    truth = DATA / name / "resumed"
    kinds = ("step", "evaluation", "sample", "memory")
    ours, theirs = lines(run / "metrics.jsonl", *kinds), lines(truth / "metrics.jsonl", *kinds)
    assert [event["step"] for event in ours if event["event"] == "step"] == list(range(1, MORE_STEPS + 1))
    assert lines(run / "metrics.jsonl", "attempt")[-1]["start_step"] == STEPS
    ours = [event for event in ours if event.get("memory") not in ("state cleared", "cache cleared")]  # new ones
    for mine, old in zip(ours, theirs, strict=True):
        assert is_close(mine, old)

    ours_at, theirs_at = run / "checkpoints" / f"step_{MORE_STEPS:08d}", truth / f"step_{MORE_STEPS:08d}"
    mine, old = (json.loads((folder / "manifest.json").read_text()) for folder in (ours_at, theirs_at))
    for key in ("step", "updates", "tokens", "cursor", "evaluations", "dataset", "tokenizer"):
        assert is_close(mine[key], old[key]), key
    for kind in ("weights", "optimizer", "memory"):
        found, expected = tensors(ours_at, kind), tensors(theirs_at, kind)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert found[tensor].dtype == value.dtype and found[tensor].shape == value.shape, tensor
            torch.testing.assert_close(found[tensor], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


def is_close(mine: Any, old: Any) -> bool:
    """Equal, except for the seventh digit of non-integers, and for new keys."""
    if isinstance(old, dict):
        return mine.keys() >= old.keys() and all(is_close(mine[key], old[key]) for key in old)
    if isinstance(old, list):
        return len(mine) == len(old) and all(map(is_close, mine, old))
    if isinstance(old, float):
        return bool(mine == pytest.approx(old, rel=1e-6))
    return bool(mine == old)


def tensors(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    return {
        name: value for file in (checkpoint / kind).glob("*.safetensors") for name, value in load_file(file).items()
    }
