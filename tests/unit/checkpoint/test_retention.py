"""Which checkpoints stay, and which settings may change between two attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.checkpoint.retention import to_remove, without_memory
from brt_dist.config.changes import changes
from brt_dist.config.schema import RunConfig


def keep(newest: int, every: int = 0, best: int = 0) -> RunConfig:
    return RunConfig(directory="r", steps=9, keep_checkpoints=newest, keep_every=every, keep_best=best)  # type: ignore


def test_the_newest_the_best_and_every_so_many_stay() -> None:
    scores = {10: 3.0, 20: 1.5, 30: 2.0, 40: None, 50: 2.5, 60: None}
    assert to_remove(scores, keep(2)) == [10, 20, 30, 40]
    assert to_remove(scores, keep(2, best=1)) == [10, 30, 40]
    assert to_remove(scores, keep(1, every=20, best=2)) == [10, 50]
    assert to_remove(scores, keep(1), protected=(10,)) == [20, 30, 40, 50]


def test_of_two_that_are_equally_good_the_newer_stays() -> None:
    assert to_remove({1: 2.0, 2: 2.0, 3: None}, keep(1, best=1)) == [1]


@given(st.dictionaries(st.integers(1, 99), st.none() | st.floats(0, 9)), st.integers(1, 4), st.integers(0, 5))
def test_never_the_newest_and_never_twice(scores: dict[int, float | None], newest: int, best: int) -> None:
    gone = to_remove(scores, keep(newest, best=best))
    assert gone == sorted(set(gone)) and not set(gone) & set(sorted(scores)[-newest:])
    left = {step: score for step, score in scores.items() if step not in gone}
    assert to_remove(left, keep(newest, best=best)) == []


BEFORE = {"run.seed": 1, "data.streams": 4, "model.width": 8, "parallel.data": 1, "run.steps": 5, "model.dropout": 0.0}


@pytest.mark.parametrize(
    ("now", "allowed", "refused"),
    [
        ({"parallel.data": 2, "run.steps": 9}, (), []),
        ({"run.seed": 2, "data.streams": 8}, (), ["data.streams", "run.seed"]),
        ({"run.seed": 2, "data.streams": 8}, ("data",), ["run.seed"]),
        ({"data.streams": 8}, ("data.stream",), ["data.streams"]),  # a beginning ends at a dot
        ({"model.width": 9, "model.dropout": 0.1}, ("model",), ["model.width"]),
    ],
)
def test_what_would_silently_be_another_run(now: dict[str, int], allowed: tuple[str, ...], refused: list[str]) -> None:
    found = changes(BEFORE, BEFORE | now, allowed)
    assert [change.key for change in found] == refused
    assert all((change.reason is not None) == (change.key == "model.width") for change in found)


def test_memory_stays_in_the_newest() -> None:
    assert without_memory([30, 10, 20], keep(3)) == []
    some = keep(3).model_copy(update={"keep_memory": 1})
    assert without_memory([30, 10, 20], some) == [10, 20]
    assert without_memory([30, 10, 20], some, protected=(20,)) == [10]
    assert without_memory([30], some) == []
