"""Bytes that the plan counts between tensor parallel ranks, and those that the engine sends."""

from collections import Counter
from typing import Any

import pytest

from brt_dist.planning.data_traffic import data_calls
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.stage_time import stage_time
from tests.scale.settings import small
from tests.scale.world import fake_world

LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "tensor": ({"tensor": 4}, 0),
    "sequence": ({"tensor": 4, "sequence_parallel": True}, 0),
    "attention again": ({"tensor": 4, "recompute": "attention"}, 0),
    "recompute": ({"tensor": 4, "recompute": "layer"}, 0),
    "sequence, recompute": ({"tensor": 4, "sequence_parallel": True, "recompute": "layer"}, 0),
    "first stage": ({"tensor": 2, "pipeline": 2}, 0),
    "last stage": ({"tensor": 2, "pipeline": 2, "sequence_parallel": True}, 2),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_tensor_parallel_ranks_send_what_is_planned(case: str) -> None:
    layout, rank = LAYOUTS[case]
    config = small(layout, micro_batches=4)
    with fake_world(config, rank) as world, world.engine() as engine:
        engine.train_step(world.inputs(1), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
        stage = world.layout.stage
    sent = sum(one.wire_bytes for one in recorder.of("tensor") if one.phase == "compute")
    links = {"link_rate": 1.0, "link_efficiency": 1.0, "link_seconds": 0.0, "hop_seconds": 0.0}
    links |= {"network_hop_seconds": 0.0, "is_asynchronous": False}
    planner = Planner(config, device_spec("h100").model_copy(update=links))
    planned = 4 * stage_time(planner.sizes, config.parallel, stage, planner.device).tensor
    assert planned == pytest.approx(sent, rel=0.05)


@pytest.mark.parametrize("bucket", [8_000, 20_000, 1_000_000])
def test_data_parallel_ranks_make_the_calls_that_are_planned(bucket: int) -> None:
    config = small({"data": 4, "zero_stage": 1, "zero": {"reduce_bucket": bucket}}, micro_batches=2)
    with fake_world(config, 0) as world, world.engine() as engine:
        engine.train_step(world.inputs(1), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
    made = Counter(one.op for one in recorder.of("data"))
    planned = data_calls(ModelSizes(config), config.parallel, 0)
    assert planned == (made["reduce_scatter"], made["all_gather"])
