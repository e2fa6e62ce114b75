import math

import pytest

from brt_dist.optim.adamw import AdamW
from brt_dist.optim.learning_rate import learning_rate


def rate(step: int, **settings: object) -> float:
    return learning_rate(step, 10_000, AdamW.model_validate({"warmup_steps": 1000, **settings}))


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rate(1, learning_rate=2.0) == pytest.approx(2.0 / 1000)
    assert rate(500, learning_rate=2.0) == pytest.approx(1.0)
    assert rate(1000, learning_rate=2.0) == 2.0


def test_rsqrt_is_the_papers_one_over_the_root_of_the_step() -> None:
    peak = 1 / math.sqrt(1000)
    for step in (1000, 4000, 9999):
        assert rate(step, learning_rate=peak, schedule="rsqrt") == pytest.approx(1 / math.sqrt(step))


def test_cosine_ends_at_its_share_of_the_peak() -> None:
    assert rate(5500, learning_rate=1.0, schedule="cosine", final_ratio=0.1) == pytest.approx(0.55)
    assert rate(10_000, learning_rate=1.0, schedule="cosine", final_ratio=0.1) == pytest.approx(0.1)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    for schedule in ("constant", "rsqrt", "cosine"):
        assert rate(1, learning_rate=1.0, warmup_steps=0, schedule=schedule) == pytest.approx(1.0, abs=1e-6)
