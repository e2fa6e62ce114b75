"""A search finds the fastest legal layout that fits."""

import itertools

import pytest

from brt_dist.config.layout_rules import layout_problems
from brt_dist.config.schema import Config
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import LayoutPlan, Planner
from brt_dist.planning.search import least_devices, search, with_devices
from tests.unit.planning.recipes import layout, recipe

H100 = device_spec("h100")
SMALL = ("model.layers=6", "model.mixers.recurrent.layers=[-2]", "data.streams=32")


def every_layout(config: Config, devices: int) -> list[LayoutPlan]:
    """All that break no rule and fit, one by one."""
    planner, plans = Planner(config, H100), []
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    choices = itertools.product(
        sizes, sizes, (1, 2, 3), (1, 2, 4, 8, 16, 32), ("none", "attention", "layer"), (False, True), ("device", "host")
    )
    for tensor, pipeline, stage, streams, recompute, split, place in choices:
        if devices % (tensor * pipeline) or pipeline > config.model.layers:
            continue
        parallel = layout(
            tensor=tensor, pipeline=pipeline, data=devices // (tensor * pipeline), zero_stage=stage,
            micro_batch=streams, recompute=recompute, sequence_parallel=split, stream_memory=place,
        )  # fmt: skip
        if not layout_problems(with_devices(config, parallel, H100)):
            plan = planner.plan(parallel)
            plans += [plan] if plan.problem is None else []
    return plans


def test_nothing_that_fits_is_faster() -> None:
    config = recipe("scale_7b", *SMALL)
    found, every = search(Planner(config, H100), 8), every_layout(config, 8)
    assert min(plan.time.total for plan in every) == pytest.approx(found.plans[0].time.total)
    assert {plan.parallel for plan in found.plans} <= {plan.parallel for plan in every}
    # what is left out is in host memory although it fits on the device
    left_out = {plan.parallel for plan in every} - {plan.parallel for plan in found.plans}
    assert all(parallel.stream_memory == "host" for parallel in left_out)
    times = [plan.time.total for plan in found.plans]
    assert times == sorted(times)


def test_it_says_why_others_lose() -> None:
    found = search(Planner(recipe("scale_7b", *SMALL), H100), 8)
    assert found.why_not_first(found.plans[0]).startswith("fastest")
    recomputing = next(
        plan
        for plan in found.plans
        if plan.parallel == found.plans[0].parallel.model_copy(update={"recompute": "layer"})
    )
    assert "slower: compute takes" in found.why_not_first(recomputing)


def test_the_optimizer_is_offloaded_where_nothing_else_fits() -> None:
    config = recipe("scale_7b", "data.streams=16")
    found = search(Planner(config, H100), 1)
    assert found.plans and all(plan.parallel.zero.offload_optimizer == "cpu" for plan in found.plans)


def test_the_least_number_of_devices() -> None:
    planner = Planner(recipe("scale_70b"), H100)
    found = least_devices(planner, 2)
    assert found is not None and found.problem is None
    count = found.parallel.world_size
    assert count > 2 and not search(planner, count // 2).plans
