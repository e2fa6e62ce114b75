"""How gradients are reduced over data parallel ranks: types, operations, order and bytes."""

from typing import Any

import pytest
import torch

from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
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


BUCKET = 3000  # elements


def scattered(**zero: Any) -> tuple[list[Collective], int]:
    """Collectives of the backwards of a step on tensor and data group, and how many elements this rank trains."""
    config = small({"tensor": 2, "data": 4, "zero": {"reduce_bucket": BUCKET, **zero}}, micro_batches=3)
    with fake_world(config, rank=1) as world, world.engine() as engine:
        for number in (1, 2):
            engine.train_step(world.inputs(number), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 3)
        trained = sum(parameter.local.numel() for parameter in engine.parameters)
    return [one for one in recorder.collectives if one.bytes > 8], trained


def test_zero_1_in_bf16_scatters_each_gradient_once_and_starts_while_backward_runs() -> None:
    found, trained = scattered()
    scatters = [place for place, one in enumerate(found) if one.op == "reduce_scatter"]
    assert all(found[place].asynchronous and found[place].phase == "compute" for place in scatters)
    assert not [one for one in found if one.group == "data" and one.op in ("all_reduce", "reduce", "broadcast")]
    sizes = [found[place].bytes // 4 for place in scatters]
    assert len(sizes) > 5 and sum(size > BUCKET + 8 for size in sizes) <= 1  # the table is larger than a bucket
    assert trained <= sum(sizes) < trained + 8 * len(sizes)  # each is padded to a multiple of 2 * 4
    assert sum(found[place].wire_bytes for place in scatters) == pytest.approx(3 / 4 * 4 * sum(sizes))
    # the three backwards are marked by their tensor parallel all-reduces
    marks = [place for place, one in enumerate(found) if one.group == "tensor" and one.phase == "compute"]
    assert scatters[0] > marks[len(marks) * 2 // 3]  # in the last of them
    assert sum(place < marks[-1] for place in scatters) >= len(scatters) // 2


@pytest.mark.parametrize(("stage", "precision", "times"), [(1, "fp32", 1), (2, "fp32", 3), (2, "bf16", 3)])
def test_deepspeed_sums_whole_gradients_on_all_ranks(stage: int, precision: str, times: int) -> None:
    """Under ZeRO-2 in each of three micro-batches; the plan counts so much."""
    config = small({"data": 4, "zero_stage": stage}, precision, micro_batches=3)
    with fake_world(config, rank=1) as world, world.engine() as engine:
        engine.train_step(world.inputs(1), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
        trained = sum(parameter.local.numel() for parameter in engine.parameters)
    found = [one for one in recorder.of("data") if one.bytes > 8 and one.phase != "update"]
    assert {one.op for one in found} == {"all_reduce"}
    assert sum(one.wire_bytes for one in found) == pytest.approx(times * 2 * 3 / 4 * 4 * trained, rel=0.01)
    parallel = config.parallel.model_copy(update={"micro_batch": 1})
    device = device_spec("h100").model_copy(update={"link_rate": 1.0, "link_efficiency": 1.0})
    planned = Planner(config, device).plan(parallel).time.reduce
    assert planned == pytest.approx(sum(one.wire_bytes for one in found), rel=0.01)


def test_without_overlap_gradients_are_scattered_after_backward() -> None:
    found, _ = scattered(overlap=False)
    assert {one.phase for one in found if one.op == "reduce_scatter"} == {"control"}
    whole, _ = scattered(reduce_scatter=False)
    assert not [one for one in whole if one.op == "reduce_scatter"]
    assert [one for one in whole if one.group == "data" and one.op == "all_reduce" and one.asynchronous]


def test_weights_are_gathered_within_a_node() -> None:
    """hpZ: backward gathers from the second copy, over the ranks of a node."""
    config = small({"data": 8, "zero_stage": 3, "zero": {"weights_within": 2, "persistent_below": 0}})
    with fake_world(config, rank=5) as world, world.engine() as engine:
        for number in (1, 2):
            engine.train_step(world.inputs(number), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 3)
    gathers = recorder.of(op="all_gather", phase="compute")
    assert {one.ranks for one in gathers} == {2, 8}
