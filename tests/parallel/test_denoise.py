"""Encoder-decoders (`objective: denoise`): every layout trains and evaluates as one process does; runs resume."""

from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ExitCode
from tests.datasets import make_dataset
from tests.parallel.pool import RankPool
from tests.parallel.test_masked import finished
from tests.parallel.test_resume import config, events, same_tensors, train

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2, "recompute": "layer"},
    "dp2-zero1": {"data": 2, "recompute": "attention"},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-dp2-zero2": {"tensor": 2, "data": 2, "zero_stage": 2},
}
# an encoder of both kinds, shortened twice, and a decoder that carries a state and a window
MODEL: dict[str, Any] = {
    "objective": "denoise", "layers": 4, "width": 32, "heads": 2, "head_dim": 16, "window": 32, "dropout": 0.1,
    "vocab_size": 258, "encoder": {"layers": 2, "shortened": [0, 1], "keep": 0.5},
    "mixers": {
        "bidirectional": {"layers": [0]}, "fnet": {"layers": [1]}, "recurrent": {"layers": [2], "states": 8},
        "window": {},
    },
    "ffns": {"relu": {"width": 64}},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder, ["abc defgh \n" * n for n in (5, 50, 9, 70, 31, 22)])
    return folder / "dataset"


def run_of(dataset: Path, run: Path, parallel: dict[str, Any] | None = None) -> Config:
    given = config(dataset, run, {"parallel": {"micro_batch": 1, **(parallel or {})}})
    run.mkdir()
    return given.model_copy(update={"model": ModelConfig.model_validate(MODEL)})


@pytest.fixture(scope="module")
def truth(ranks: RankPool, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    run = tmp_path_factory.mktemp("truth") / "run"
    return run, finished(ranks, run_of(dataset, run))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_and_evaluates_as_one_process(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]], layout: str
) -> None:
    found = finished(ranks, run_of(dataset, tmp_path / "run", LAYOUTS[layout]))
    assert [one["event"] for one in found] == [other["event"] for other in truth[1]]
    for one, other in zip(found, truth[1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["tokens"] == other["tokens"]
        if one["event"] == "evaluation":
            assert one["accuracy"] == pytest.approx(other["accuracy"], abs=2 / one["tokens"])  # ties, by rounding
        else:
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert sum(one["event"] == "evaluation" for one in found) >= 4


def test_a_run_resumes_to_the_bit(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]]
) -> None:
    stopped = run_of(dataset, tmp_path / "stopped")
    assert {code for code, _ in ranks.run(1, train, stopped, 1, 2)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(1, train, stopped, 2, 99)} == {ExitCode.FINISHED}
    same_tensors(truth[0], stopped.run.directory)
    keys = ("step", "loss", "tokens", "accuracy", "grad_norm", "dataset", "memory")
    facts = [
        [{key: event[key] for key in keys if key in event} for event in told]
        for told in (truth[1], events(stopped, "step", "evaluation"))
    ]
    assert facts[0] == facts[1]
