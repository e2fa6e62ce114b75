"""The recipes for 64 and 512 GPUs: they break no rule, they fit, and their ranks can be built and do not hang."""

from dataclasses import replace
from pathlib import Path

import pytest

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.planning.memory import needed_by, plan_of
from tests.scale.matching import first_mismatch
from tests.scale.recorder import Collective
from tests.scale.settings import small
from tests.scale.whole import traces, with_micro_batches

EXAMPLES = Path(__file__).parents[2] / "examples"
GB = 1e9
GPU = 80 * GB
ROOM = 20 * GB  # for activations of recomputed layers, libraries, NCCL and fragmentation
VOCABULARY = 131072


def recipe(name: str) -> Config:
    return load(EXAMPLES / f"{name}.yaml", [f"model.vocab_size={VOCABULARY}", "data.dataset=data/train"]).config


@pytest.mark.parametrize(("name", "gpus", "billions"), [("scale_7b", 64, 7), ("scale_70b", 512, 70)])
def test_a_recipe_breaks_no_rule_and_fits(name: str, gpus: int, billions: int) -> None:
    config = recipe(name)
    check(config)
    assert config.parallel.world_size == gpus == 8 * config.launch.nodes
    assert round(plan_of(config).parameters / 1e9) in (billions, billions + 1)
    for stage in range(config.parallel.pipeline):
        needed = needed_by(config, stage)
        assert needed.device <= GPU - ROOM
        assert 8 * needed.host <= 512 * GB  # of the ranks of a node


def test_all_ranks_of_a_small_layout_call_the_same_in_the_same_order() -> None:
    """Tensor 2, pipeline 4, data 2: all 16 ranks are built, on the meta device, and make a step."""
    config = small({"tensor": 2, "pipeline": 4, "data": 2, "stream_memory": "host"}, micro_batches=5)
    made = traces(config)
    assert len(made) == 16 and first_mismatch(made) is None
    # and it is seen if they do not: one rank leaves out a call, calls another shape, or changes the order
    for rank, index in ((0, 5), (9, 30)):
        assert first_mismatch(made | {rank: [*made[rank][:index], *made[rank][index + 1 :]]}) is not None
    other = [replace(call, shape=(3,)) if number == 7 else call for number, call in enumerate(made[3])]
    assert "differs" in (first_mismatch(made | {3: other}) or "")
    calls = made[6]
    first = next(i for i, call in enumerate(calls) if call.group == "data" and _differs(call, calls[i + 1]))
    swapped = [*calls[:first], calls[first + 1], calls[first], *calls[first + 2 :]]
    assert first_mismatch(made | {6: swapped}) is not None


def _differs(call: Collective, after: Collective) -> bool:
    """Whether two calls of one group are not the same."""
    return call.members == after.members and (call.op, call.shape) != (after.op, after.shape)


def test_all_ranks_of_the_7b_recipe_call_the_same_in_the_same_order() -> None:
    """Four kinds of ranks are built with weights of full size on the meta device, and stand for all 64."""
    made = traces(with_micro_batches(recipe("scale_7b"), 1))
    assert len(made) == 64 and first_mismatch(made) is None
