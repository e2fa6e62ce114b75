"""Kinds of FFN, multiplicative projections and a repeated stack: layouts compute the gradients of one plain loop."""

from functools import cache
from typing import Any

import pytest

from brt_dist.config.schema import Config, ModelConfig
from tests.parallel.cases import Outcome, config, join, train_on_rank, train_plainly
from tests.parallel.matrix import DESCENT, Differences
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

STEPS = 2  # the second reads what the first has left in memory
SPARSE = {"blocks": 8, "block_size": 8, "rank": 16, "noise": 0.0}
EXPERTS = {"experts": 8, "chosen": 2, "expert_width": 16}
MODELS: dict[str, dict[str, Any]] = {
    "ffns": {"layers": 3, "ffns": {"relu": {"width": 96}, "sparse": {"layers": [1], **SPARSE},
                                   "sigma_moe": {"layers": [2], **EXPERTS}}},
    "dense": {"layers": 2, "ffns": {"gelu": {"width": 96}, "swiglu": {"layers": [1], "width": 64}}},
    "multiplicative": {"layers": 2, "mixers": {"window": {"qkv": "multiplicative"},
                                               "recurrent": {"layers": [1], "states": 24}}},
    "repeat": {"layers": 3, "repeat": 2},
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-sp": {"tensor": 2, "sequence_parallel": True},
}


# a repeated stack has no pipeline
CASES = [(model, layout) for model in MODELS for layout in LAYOUTS if (model, layout) != ("repeat", "pp2")]


def given(model: str, layout: dict[str, Any] | None = None) -> Config:
    plain = config(layout, optimizer=DESCENT)
    changed = ModelConfig.model_validate(plain.model.model_dump() | MODELS[model])
    return plain.model_copy(update={"model": changed})


@cache
def truth(model: str) -> Outcome:
    return train_plainly(given(model), steps=STEPS)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_a_layout_has_the_gradients_of_one_process(ranks: RankPool, model: str, layout: str) -> None:
    here = given(model, LAYOUTS[layout])
    found = join(ranks.run(here.parallel.world_size, train_on_rank, here, STEPS))
    differences = Differences.between(found, truth(model))
    assert differences.is_within_bounds, differences
