"""Random layouts of up to 64 ranks: every rank makes the calls that the others wait for.

`make test-layouts` builds every rank of more of them.
"""

from dataclasses import replace
from itertools import islice

import pytest

from tests.scale.layouts import RANKS, described, legal_layouts, mismatch_of
from tests.scale.matching import first_mismatch
from tests.scale.whole import traces

CASES = list(islice(legal_layouts(seed=3), 6))


@pytest.mark.parametrize("config", CASES, ids=described)
def test_no_rank_of_a_random_layout_waits_for_ever(config: object) -> None:
    assert mismatch_of(config) is None  # type: ignore[arg-type]


def test_layouts_that_are_drawn_have_all_axes() -> None:
    drawn = list(islice(legal_layouts(seed=1), 200))
    layouts = [one.parallel for one in drawn]
    assert {one.zero_stage for one in layouts} == {0, 1, 2, 3}
    assert {one.tensor for one in layouts} == {1, 2, 4} and {one.pipeline for one in layouts} == {1, 2, 3, 4, 8}
    assert {one.sequence_parallel for one in layouts} == {False, True}
    assert any(one.tensor > 1 < one.pipeline and one.data > 1 for one in layouts)
    assert 48 < max(one.world_size for one in layouts) <= RANKS


def test_a_rank_that_leaves_out_a_call_is_found_in_any_layout() -> None:
    config = next(one for one in legal_layouts(seed=2) if 1 < one.parallel.world_size <= 8)
    made = traces(config, everyone=True)
    for rank in made:
        middle = next(i for i in range(len(made[rank]) // 2, len(made[rank])) if made[rank][i].ranks > 1)
        assert first_mismatch(made | {rank: [*made[rank][:middle], *made[rank][middle + 1 :]]}) is not None
        other = replace(made[rank][middle], shape=(7, 7))
        assert first_mismatch(made | {rank: [*made[rank][:middle], other, *made[rank][middle + 1 :]]}) is not None
