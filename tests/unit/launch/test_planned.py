"""The plan of a run beside what happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.loading import dump
from brt_dist.events import AttemptEvent, CheckpointEvent, Event, LayoutSizes, PartsEvent, StepEvent
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.stage_time import stage_time
from launch.report.collect import RunFacts
from launch.report.page import page
from launch.views.planned import compared
from tests.unit.planning.recipes import recipe

H100 = "NVIDIA H100 80GB HBM3"


def events(device: str, attempt: int = 1, data: int = 32, **step: Any) -> list[Event]:
    """An attempt whose first step takes long, and a checkpoint."""
    begun = AttemptEvent(attempt=attempt, world_size=2 * data, device=device, layout=LayoutSizes(2, 1, data, 1, 1024))
    steps: list[Event] = [
        StepEvent(attempt=attempt, step=number, step_seconds=60.0 if number == 1 else 8.0 + number / 10, **step)
        for number in range(1, 6)
    ]
    return [begun, *steps, CheckpointEvent(attempt=attempt, step=5, stall_seconds=0.5)]


def test_parts_of_the_plan_are_beside_what_was_measured() -> None:
    config = recipe("scale_7b")
    found = {one.name: one for one in compared(config, events(H100, peak_memory_bytes=30_000_000_000, mfu=0.4))}
    plan = Planner(config, device_spec("h100")).plan(config.parallel)
    step, memory = found["step"], found["peak memory of rank 0"]
    assert step.planned == plan.time.total and step.measured == pytest.approx(8.35)  # without the first
    assert memory.planned == plan.stages[0].device and memory.measured == 30e9
    assert memory.ratio == 30e9 / plan.stages[0].device
    assert (found["MFU"].planned, found["MFU"].measured) == (plan.mfu, 0.4)
    assert found["stall of a checkpoint"].measured == 0.5
    assert sum(one.planned or 0 for name, one in found.items() if name.startswith("step: ")) == pytest.approx(
        plan.time.total - plan.time.checkpoint
    )


def test_parts_of_a_step_are_beside_their_medians() -> None:
    config = recipe("scale_7b", "parallel.pipeline=2", "parallel.data=16")
    seconds = {"forward": 2.0, "backward": 4.0, "tensor": 0.5, "pipeline": 1.5, "agreement": 0.01}
    told = [
        PartsEvent(attempt=1, step=step, seconds={**seconds, "backward": back}) for step, back in enumerate((3, 4, 9))
    ]
    begun = AttemptEvent(attempt=1, world_size=64, device=H100, layout=LayoutSizes(2, 2, 16, 1, 1024))
    found = {one.name: one for one in compared(config, [begun, *told, PartsEvent(attempt=0, step=1, seconds=seconds)])}
    planner = Planner(config, device_spec("h100"))
    time = planner.plan(config.parallel).time
    first = stage_time(planner.sizes, config.parallel, 0, planner.device)
    compute, waiting = found["step: compute"], found["step: the pipeline's transfers and bubble"]
    count = planner.sizes.on(config.parallel).micro_batches
    assert compute.measured == 6.0 and compute.planned == pytest.approx(count * (first.compute + first.launches))
    assert waiting.measured == 1.5 and waiting.planned and waiting.planned > count * first.pipeline
    assert found["step: the update"].planned == time.update and found["step: the update"].measured == 0.0
    assert (found["step: agreement of all ranks"].planned, found["step: agreement of all ranks"].measured) == (
        None,
        0.01,
    )
    assert sum(one.planned or 0 for name, one in found.items() if name.startswith("step: ")) == pytest.approx(
        time.total - time.checkpoint
    )


def test_the_last_attempt_counts_with_the_ranks_that_it_had() -> None:
    config = recipe("scale_7b")
    told = [*events(H100, mfu=0.4), *events(H100, attempt=2, data=16, mfu=0.3)]
    found = {one.name: one for one in compared(config, told)}
    fewer = Planner(config, device_spec("h100")).plan(config.parallel.model_copy(update={"data": 16}))
    assert found["step"].planned == fewer.time.total and found["MFU"].measured == 0.3


def test_a_cpu_has_a_planned_memory_and_no_planned_time() -> None:
    found = {one.name: one for one in compared(recipe("scale_7b"), events("cpu"))}
    assert found["peak memory of rank 0"].planned and found["step"].planned is None and found["step"].measured


def test_an_unknown_device_is_not_compared() -> None:
    assert not compared(recipe("scale_7b"), events("Some GPU")) and not compared(recipe("scale_7b"), [])


def test_the_report_shows_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = recipe("scale_7b", f"run.directory={run}")
    (run / "config.yaml").write_text(dump(config))
    fullest = {"parameters": 5, "weights": 2, "optimizer": 6, "carried": 7}
    plan = {"parameters": 1234, "tokens_per_step": 64, "flops_per_step": 1.5e9, "fullest_rank": fullest}
    begun = {"event": "attempt", "attempt": 1, "world_size": 64, "device": H100, "plan": plan, "layout": {"data": 32}}
    steps = [{"event": "step", "attempt": 1, "step": number, "step_seconds": 8.25, "loss": 1.0} for number in (1, 2, 3)]
    parts = {"event": "parts", "attempt": 1, "step": 2, "forward": 2.25, "backward": 3.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (begun, *steps, parts)))
    text = page([RunFacts.of(run)])
    total = Planner(config, device_spec("h100")).plan(config.parallel).time.total
    assert f"{total:.2f} s" in text and "8.25 s" in text and "peak memory of rank 0" in text
    assert "step: compute" in text and "5.75 s" in text
