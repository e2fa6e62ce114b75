"""Encoders (`objective: mlm`): every layout trains and evaluates as one process does, and a run resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ExitCode
from brt_dist.kinds import MIXERS
from tests.datasets import make_dataset
from tests.parallel.pool import RankPool
from tests.parallel.test_resume import config, events, finished, same_tensors, train

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "dp2-zero1": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "pp2": {"pipeline": 2},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder, ["abc defgh \n" * n for n in (5, 50, 9, 70, 31, 22)])
    return folder / "dataset"


MODEL: dict[str, Any] = {
    "layers": 4, "width": 32, "heads": 2, "head_dim": 16, "window": 16, "dropout": 0.1, "vocab_size": 257,
    "objective": "mlm", "ffns": {"relu": {"width": 64}},
    "mixers": {
        "fnet": {"layers": [0]}, "bidirectional": {"layers": [2]}, "recurrent": {"layers": [1], "states": 8},
        "window": {},
    },
}  # fmt: skip
"""An encoder of a Fourier transform, attention in both directions, a layer with a state and a window.

One vocabulary entry is the mask token.
"""


def encoder(dataset: Path, run: Path, parallel: dict[str, Any] | None = None) -> Config:
    given = config(dataset, run, {"parallel": {"micro_batch": 1, **(parallel or {})}})
    run.mkdir()
    return given.model_copy(update={"model": ModelConfig.model_validate(MODEL)})


def test_every_encoder_is_here() -> None:
    kinds = {mixer.kind for mixer in ModelConfig.model_validate(MODEL).mixers.values()}
    assert {kind for kind in MIXERS if not MIXERS[kind].is_causal} <= kinds


@pytest.fixture(scope="module")
def truth(ranks: RankPool, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    run = tmp_path_factory.mktemp("truth") / "run"
    return run, finished(ranks, encoder(dataset, run))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_and_evaluates_as_one_process(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]], layout: str
) -> None:
    found, expected = finished(ranks, encoder(dataset, tmp_path / "run", LAYOUTS[layout])), truth[1]
    assert len(found) == len(expected)
    evaluated = 0
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["tokens"] == other["tokens"]
        if one["event"] == "evaluation":
            evaluated += 1
            assert one["accuracy"] == pytest.approx(other["accuracy"], abs=2 / one["tokens"])  # ties, by rounding
            assert 0 <= one["accuracy"] < 1 and not one["positions"]
        else:
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert evaluated >= 4


def test_a_run_resumes_to_the_bit(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]]
) -> None:
    stopped = encoder(dataset, tmp_path / "stopped")
    assert {code for code, _ in ranks.run(1, train, stopped, 1, 2)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(1, train, stopped, 2, 99)} == {ExitCode.FINISHED}
    same_tensors(truth[0], stopped.run.directory)
    keys = ("step", "loss", "tokens", "accuracy", "grad_norm", "dataset", "memory")
    facts = [
        [{key: event[key] for key in keys if key in event} for event in told]
        for told in (truth[1], events(stopped, "step", "evaluation"))
    ]
    assert facts[0] == facts[1]
