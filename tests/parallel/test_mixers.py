"""Every kind of mixer in every kind of layout: one model that has them all, so that each case covers all kinds.

It is also the test of hybrids.  What a kind computes is tested in tests/unit/model/mixers, on one process.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.loading import dump
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ExitCode
from brt_dist.kinds import MIXERS
from tests.datasets import make_dataset
from tests.parallel.cases import config, join, train_on_rank, train_plainly
from tests.parallel.matrix import DESCENT, NORM, Differences
from tests.parallel.pool import RankPool
from tests.parallel.relayout import LOSS, Relayout

SETTINGS: dict[str, dict[str, Any]] = {"recurrent": {"states": 24}}
KINDS = [kind for kind in MIXERS if MIXERS[kind].is_causal]
ALL = {kind: {"layers": [layer], **SETTINGS.get(kind, {})} for layer, kind in enumerate(KINDS)}


def model_section(**sizes: Any) -> dict[str, Any]:
    return {"layers": len(ALL), "mixers": ALL, "ffns": {"relu": {"width": 96}}, "dropout": 0.0, **sizes}


STEPS = 2  # the second reads what the first has left in memory
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "tp2-sequence": {"tensor": 2, "sequence_parallel": True, "recompute": True},
    "pp2": {"pipeline": 2, "recompute": True},
    "dp2-zero1": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
}


def with_mixers(given: Config) -> Config:
    values = given.model.model_dump()
    return given.model_copy(update={"model": ModelConfig.model_validate(values | {"layers": len(ALL), "mixers": ALL})})


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_gradients_of_one_plain_loop(ranks: RankPool, layout: str) -> None:
    given = with_mixers(config(LAYOUTS[layout], optimizer=DESCENT))
    truth = train_plainly(with_mixers(config(optimizer=DESCENT)), steps=STEPS)
    found = join(ranks.run(given.parallel.world_size, train_on_rank, given, STEPS))
    differences = Differences.between(found, truth)
    assert differences.loss <= LOSS and differences.grad_norm <= NORM and differences.gradient <= 1, differences
    for name, value in truth.memory.items():
        assert (found.memory[name] - value).abs().max() < 2e-4 * value.abs().max().clamp(min=1), name


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("tp2", "dp2-zero3"), ("pp2", "tp2"), ("dp2-zero3", "pp2")])
def test_another_layout_takes_over(ranks: RankPool, tmp_path: Path, source: str, target: str) -> None:
    relayout = Relayout(ranks, tmp_path, model=model_section(width=32, heads=2, head_dim=16, window=16, vocab_size=256))
    assert relayout.compare(source, target) <= LOSS


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_is_evaluated_samples_and_is_reported(ranks: RankPool, tmp_path: Path) -> None:
    from tests.parallel.test_resume import config as run_config
    from tests.parallel.test_resume import same_tensors, train

    make_dataset(tmp_path, ["abc defgh \n" * n for n in (5, 50, 9, 70, 31, 22)])
    model = model_section(width=32, heads=2, head_dim=16, window=16, vocab_size=256, dropout=0.1)
    runs = []
    for name in ("straight", "stopped"):
        given = run_config(tmp_path / "dataset", tmp_path / name, {"parallel": {"data": 2}, "run": {}})
        about = given.run.model_copy(update={"memory_every": 2, "sample_tokens": 3})
        given = given.model_copy(update={"model": ModelConfig.model_validate(model), "run": about})
        given.run.directory.mkdir()
        (given.run.directory / "config.yaml").write_text(dump(given))
        runs.append(given)
    assert {code for code, _ in ranks.run(2, train, runs[0], 1, 99)} == {ExitCode.FINISHED}
    assert {code for code, _ in ranks.run(2, train, runs[1], 1, 3)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(2, train, runs[1], 2, 99)} == {ExitCode.FINISHED}
    same_tensors(*(given.run.directory for given in runs))

    lines = (runs[1].run.directory / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    kinds = {event["event"] for event in events}
    assert {"step", "evaluation", "sample", "memory", "held", "checkpoint"} <= kinds
    (told,) = [event["layers"] for event in events if event["event"] == "memory" and event["step"] == 6]
    assert {layer["layer"] for layer in told} == {layer for layer, kind in enumerate(KINDS) if MIXERS[kind].statistics}
    assert all(0 < layer["state_rms"] < layer["state_max"] for layer in told)
    plan = next(event["plan"] for event in events if event["event"] == "attempt")
    held = next(event for event in events if event["event"] == "held")
    assert held["carried"] == plan["fullest_rank"]["carried"] and held["weights"] == plan["fullest_rank"]["weights"]

    from click.testing import CliRunner

    from launch.cli import brt

    done = CliRunner().invoke(brt, ["report", str(runs[1].run.directory)])
    assert done.exit_code == 0, done.output
    page = (runs[1].run.directory / "report.html").read_text()
    assert "Size of the states" in page and "layer 2" in page
