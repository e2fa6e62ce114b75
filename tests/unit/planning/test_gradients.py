"""Gradients and buffers from moment to moment of a step, by hand."""

from typing import Any

import pytest

from brt_dist.planning.execution import ON_CPU, ON_GPU
from brt_dist.planning.gradients import Bytes, GradientMemory, Parameters, gradient_memory, most_copied
from tests.unit.planning.recipes import layout, recipe

HELD = Parameters((100, 300, 100), 500)  # 1000 elements


@pytest.mark.parametrize(
    ("layers", "shards", "expected"),
    [
        ((4, 4, 4, 4), 1, 16),
        ((4, 4, 4, 4), 2, 8),  # a cut between parameters copies nothing twice
        ((4, 8, 4), 2, 12),  # both ranks copy all of the one in the middle
        ((2, 9, 1), 4, 11),  # ranges of 3: the first has the end of 2 and the beginning of 9
        ((100,), 4, 100),
        ((), 4, 0),
    ],
)
def test_a_rank_copies_all_parameters_of_which_it_updates_a_part(
    layers: tuple[int, ...], shards: int, expected: int
) -> None:
    assert most_copied(Parameters(layers, 0), shards) == expected
    assert most_copied(Parameters(layers, 50), shards) == expected + 50  # the embedding is cut apart from layers


def memory(precision: str, micro_batches: int, on_cpu: bool = False, **sizes: Any) -> GradientMemory:
    config = recipe("scale_7b", f"run.precision={precision}")
    data = config.data.model_copy(update={"streams": 2 * micro_batches})
    config = config.model_copy(update={"data": data, "parallel": layout(data=2, **sizes)})
    return gradient_memory(config, HELD, Bytes(0, 64), ON_CPU if on_cpu else ON_GPU)


def test_float32_gradients_of_a_single_micro_batch_are_made_one_by_one() -> None:
    single, several = memory("fp32", 1), memory("fp32", 2)
    assert (single.before, single.backward, single.made) == (Bytes(0, 0), Bytes(0, 64), 4)
    assert (several.before, several.backward, several.made) == (Bytes(4000, 64), Bytes(4000, 64), 0)
    # all of them, and copies of the embedding and of two layers, as the cut is in the second
    assert single.after[0] == several.after[0] == Bytes(4000 + 4 * (500 + 400), 64)


def test_sums_are_reduced_in_place_by_nccl_and_on_a_copy_by_gloo() -> None:
    assert memory("bf16", 1).after[0] == Bytes(4000, 0) and memory("bf16", 1).made == 0
    assert memory("bf16", 1, on_cpu=True).after[0] == Bytes(4000, 4000) and memory("bf16", 1, on_cpu=True).made == 4


def test_without_zero_gradients_are_put_together() -> None:
    found = memory("fp32", 1, zero_stage=0)
    assert found.after == (Bytes(4000, 4000), Bytes(4000, 4 * 500))  # then roots of the larger group's second moments
    assert memory("fp32", 1, on_cpu=True, zero_stage=0).after[1] == Bytes(4000, 0)


def test_a_bucket_is_reduced_as_two_copies_in_bf16() -> None:
    assert memory("bf16", 1, zero_stage=2).after[0] == Bytes(2000, 64 + 1000 * (2 + 4))


@pytest.mark.parametrize("on_cpu", [False, True])
def test_what_zero_3_gathers_is_there_twice_whether_or_not_a_collective_copies(on_cpu: bool) -> None:
    """Until weights are whole there may be a copy of what they are gathered in; then the copy is gone."""
    found = memory("bf16", 1, on_cpu=on_cpu, zero_stage=3)
    assert found.gathered == 2 * 1000 and found.before == found.backward == Bytes(2000, 64)
    assert max(one.buckets for one in found.after) <= 64 + 4 * 500 * 2


def test_updated_weights_are_gathered_in_place_by_nccl_and_on_a_copy_of_the_whole_by_gloo() -> None:
    assert memory("fp32", 1, zero_stage=2).after[-1] == Bytes(0, 0)
    assert memory("fp32", 1, on_cpu=True, zero_stage=2).after[-1] == Bytes(0, 4000)
