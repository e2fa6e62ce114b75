"""Stages have about as much work each: against all ways to cut."""

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.config.stages import balanced, stage_layers, work
from brt_dist.errors import ConfigError


@settings(max_examples=200)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_no_other_cut_is_better(work: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(work)))
    every = [[0, *inner, len(work)] for inner in combinations(range(1, len(work)), stages - 1)]

    def quality(bounds: list[int]) -> tuple[int, int, list[int]]:
        parts = [sum(work[begin:end]) for begin, end in pairwise(bounds)]
        return max(parts), sum(part * part for part in parts), [-bound for bound in bounds]

    assert balanced(work, stages) == min(every, key=quality)


def config(parallel: dict[str, Any], vocab_size: int | None = 131072, **model: Any) -> Config:
    shape = {"layers": 32, "width": 4096, "heads": 32, "mlp_width": 16384, "vocab_size": vocab_size}
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "unused", "streams": 64},
            "parallel": parallel,
            "run": {"directory": "run", "steps": 1000},
        }
    )


def counts(given: Config) -> list[int]:
    return [len(layers) for layers in stage_layers(given)]


def test_the_logits_of_a_large_vocabulary_count_as_layers() -> None:
    """The logits are 2.56 layers, and the one recurrent layer, the third from the end, is 1.72.

    All of it is 35.28 layers, 8.82 a stage: 9, 9, 9 and 5 + 0.72 + 2.56 = 8.28.  With layers alone it would be 8 each,
    and the last stage would take 11.28, 28 % longer than the mean.
    """
    layer, *_, recurrent, _, _, head = work(config({}))
    assert (round(head / layer, 2), round(recurrent / layer, 2)) == (2.56, 1.72)
    assert counts(config({"pipeline": 4})) == [9, 9, 9, 5]
    assert counts(config({"pipeline": 4}, vocab_size=256)) == [8, 8, 8, 8]
    assert counts(config({"pipeline": 4, "recompute": True})) == [9, 9, 8, 6]  # the logits are not computed again


def test_recurrent_layers_count_for_more_than_windows() -> None:
    heavy = {"recurrent_layers": (0, 1, 2, 3), "cell": "dual", "gate": "lstm"}
    assert counts(config({"pipeline": 4}, vocab_size=256, **heavy))[0] == 3


def test_stages_can_be_given() -> None:
    given = config({"pipeline": 4, "stage_layers": [5, 9, 9, 9]})
    check(given)
    assert stage_layers(given) == [range(5), range(5, 14), range(14, 23), range(23, 32)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([16, 16], r"\[16, 16\].*parallel.pipeline=4.*nearest: parallel.stage_layers=\[9, 9, 9, 5\]"),
        ([8, 8, 8, 9], r"33 layers.*model.layers=32.*nearest: parallel.stage_layers=\[9, 9, 9, 5\]"),
        ([0, 10, 10, 12], "greater than 0"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_refused(stages: list[int], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        check(config({"pipeline": 4, "stage_layers": stages}))
