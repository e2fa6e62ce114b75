"""Gradients of weights that tensor parallel ranks hold whole: one sum per step, however many micro-batches it has."""

from typing import Any

import pytest
import torch

from brt_dist.parallel.deepspeed_internals import shard
from tests.scale.settings import small
from tests.scale.world import fake_world

MICRO_BATCHES = 3
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "zero0": ({"data": 2, "zero_stage": 0}, "fp32"),
    "zero1-fp32": ({"data": 2}, "fp32"),
    "zero1": ({"data": 2}, "bf16"),
    "zero2": ({"data": 2, "zero_stage": 2}, "bf16"),
    "zero3": ({"data": 2, "zero_stage": 3}, "bf16"),
    "pp2": ({"data": 2, "pipeline": 2}, "bf16"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_all_reduce_in_float32_of_what_this_rank_updates(case: str) -> None:
    parallel, precision = CASES[case]
    config = small({"tensor": 2, "sequence_parallel": True, **parallel}, precision, micro_batches=MICRO_BATCHES)
    with fake_world(config, rank=3) as world, world.engine() as engine:
        engine.train_step(world.inputs(), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
        whole = [p for p in engine.parameters if p.partition_dim is None]
        elements = sum(shard(p.local).numel() for p in whole)
        if config.parallel.zero_stage in (1, 2):
            names = {p.name for p in whole}
            held = [one for one in engine.held_weights() if one.parameter.name in names]
            elements = sum(one.region.size for one in held if "master" in one.name)
    (total,) = [one for one in recorder.of("tensor", "all_reduce", "control") if one.bytes > 8]  # others are norms
    assert (total.dtype, total.shape) == (torch.float32, (elements,))
    assert elements
    loss = len(recorder.of("tensor", "all_reduce", "compute"))
    assert loss <= 3 * MICRO_BATCHES < len(whole) * MICRO_BATCHES
