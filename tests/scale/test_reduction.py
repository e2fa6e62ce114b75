"""How gradients are reduced over data parallel ranks: types, operations, order and bytes."""

from typing import Any

import pytest
import torch

from tests.scale.recorder import Collective
from tests.scale.settings import small
from tests.scale.world import fake_world

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero1": {"data": 4},
    "zero2": {"data": 4, "zero_stage": 2},
    "zero3": {"data": 4, "zero_stage": 3},
    "first of pp2": {"data": 4, "pipeline": 2},
    "last of pp2": {"data": 4, "pipeline": 2},
}


def reductions(parallel: dict[str, Any], precision: str = "bf16", rank: int = 1, **zero: Any) -> list[Collective]:
    """What the data parallel group reduces in a step, apart from single numbers."""
    config = small({**parallel, "zero": zero}, precision)
    with fake_world(config, rank) as world, world.engine() as engine:
        for number in (1, 2):
            engine.train_step(world.inputs(number), 1e-3)
        with world.recorder(engine) as recorder:
            assert world.recorded_step(engine, recorder, 3).is_finite
    found = [one for one in recorder.of("data") if one.op in ("all_reduce", "reduce_scatter", "reduce")]
    return [one for one in found if one.bytes > 8]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_summed_in_fp32_unless_bf16_is_asked_for(layout: str) -> None:
    for asked, dtype in (({}, torch.float32), ({"reduce_dtype": "bf16"}, torch.bfloat16)):
        found = reductions(LAYOUTS[layout], rank=5 if layout.startswith("last") else 1, **asked)
        assert found and {one.dtype for one in found} == {dtype}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp32_runs_reduce_in_fp32(stage: int) -> None:
    found = reductions({"data": 4, "zero_stage": stage}, "fp32")
    assert found and {one.dtype for one in found} == {torch.float32}
