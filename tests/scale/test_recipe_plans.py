"""The plans in docs/scaling.md are those of the code: each row anew from its layout, and the first ones searched."""

import re

import pytest

from benchmarks.recipes import BEGIN, DOCUMENT, END, GPUS, RECIPES, planner, recipe, row, rows
from brt_dist.config.rules import check
from brt_dist.config.schema import ParallelConfig
from brt_dist.planning.devices import device_spec
from brt_dist.planning.search import least_devices, with_devices

TABLE = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
BILLIONS = {"150M": 0.15, "650M": 0.65, "1.3B": 1.3, "7B": 7, "70B": 70, "400B": 400}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def parsed(layout: str) -> ParallelConfig:
    """Back from `launch.views.plan.layout`."""
    sizes = dict(re.findall(r"\b(tp|pp|dp|zero|mb)(\d+)", layout))
    names = {"tp": "tensor", "pp": "pipeline", "dp": "data", "zero": "zero_stage", "mb": "micro_batch"}
    words = dict(re.findall(r"(\w+)=(\w+)", layout))
    return ParallelConfig.model_validate(
        {names[short]: int(size) for short, size in sizes.items()}
        | {"sequence_parallel": " sequence" in layout, "recompute": words.get("recompute", "none")}
        | {"stream_memory": words.get("streams", "device")}
        | {"zero": {"offload_optimizer": words.get("optimizer", "none")}}
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_size_of_its_name_and_fits(name: str) -> None:
    config = recipe(name)
    check(config)
    planned = planner(name)
    table = config.model.width * (config.model.vocab_size or 0)
    assert (planned.parameters - table) / 1e9 == pytest.approx(BILLIONS[name], rel=0.08)
    assert planned.plan(config.parallel).problem is None
    assert config.parallel.world_size == 8 * config.launch.nodes


@pytest.mark.parametrize("name", RECIPES)
def test_each_row_is_what_its_layout_costs(name: str) -> None:
    planned, mine = planner(name), [line for line in TABLE if cells(line)[0] == name]
    assert [cells(line)[1] for line in mine] == [f"{gpus:,}" for gpus in GPUS]
    for line, gpus in zip(mine, GPUS, strict=True):
        layout = cells(line)[2]
        if layout == "none fits":
            least = least_devices(planned, gpus)
            assert least is None or least.parallel.world_size > gpus
            continue
        plan = planned.plan(parsed(layout))
        assert plan.problem is None and row(name, gpus, plan) == line
        check(with_devices(planned.config, plan.parallel, device_spec("h100")))


def test_the_rows_of_the_smallest_model_are_the_fastest() -> None:
    assert list(rows("150M")) == [line for line in TABLE if cells(line)[0] == "150M"]
