"""Models with an oracle: every layout trains and evaluates as one process does, and a run resumes bit for bit."""

import random
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ExitCode
from brt_dist.languages import LANGUAGES, Words
from tests.datasets import make_dataset
from tests.parallel.pool import RankPool
from tests.parallel.test_resume import config, events, finished, same_tensors, train

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "dp2-zero1": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "dp3-uneven": {"data": 3, "uneven_streams": True},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
}
SCORES = ("legal", "legal_words", "state_accuracy", "stack_accuracy")
MODEL: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 2, "head_dim": 16, "window": 8, "dropout": 0.1, "vocab_size": 256,
    "mixers": {"recurrent": {"layers": [0], "states": 8}, "lstm": {}}, "ffns": {"relu": {"width": 64}},
    "objective": "oracle", "oracle": {"language": "palindrome", "depth": 12, "slots": 5},
}  # fmt: skip
"""Words are longer than blocks and segments, so that labels depend on what was read before."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, language, generator = tmp_path_factory.mktemp("data"), LANGUAGES["palindrome"](2, 12), random.Random(2)
    words = Words(language, 40)
    make_dataset(folder, [language.text(words.draw(generator)) for _ in range(60)])
    return folder / "dataset"


def given(dataset: Path, run: Path, parallel: dict[str, Any] | None = None) -> Config:
    settings = {"parallel": {"micro_batch": 1, **(parallel or {})}, "run": {"evaluation_steps": 4}}
    found = config(dataset, run, {name: {**section} for name, section in settings.items()} | {"data": {"segment": 16}})
    run.mkdir()
    return found.model_copy(update={"model": ModelConfig.model_validate(MODEL)})


@pytest.fixture(scope="module")
def truth(ranks: RankPool, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    run = tmp_path_factory.mktemp("truth") / "run"
    return run, finished(ranks, given(dataset, run))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_and_evaluates_as_one_process(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]], layout: str
) -> None:
    found, expected = finished(ranks, given(dataset, tmp_path / "run", LAYOUTS[layout])), truth[1]
    assert len(found) == len(expected)
    evaluated = 0
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        if one["event"] == "evaluation":
            evaluated += 1
            for score in SCORES:
                assert one[score] == pytest.approx(other[score], abs=2 / one["tokens"])  # ties, by rounding
            assert 0 < one["legal"] <= 1
        else:
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert evaluated >= 4


def test_a_run_resumes_to_the_bit(
    ranks: RankPool, dataset: Path, tmp_path: Path, truth: tuple[Path, list[Any]]
) -> None:
    stopped = given(dataset, tmp_path / "stopped")
    assert {code for code, _ in ranks.run(1, train, stopped, 1, 2)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(1, train, stopped, 2, 99)} == {ExitCode.FINISHED}
    same_tensors(truth[0], stopped.run.directory)
    keys = ("step", "loss", "tokens", "grad_norm", "dataset", "memory", *SCORES)
    facts = [
        [{key: event[key] for key in keys if key in event} for event in told]
        for told in (truth[1], events(stopped, "step", "evaluation"))
    ]
    assert facts[0] == facts[1]
