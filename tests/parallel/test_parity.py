"""Every layout computes what one process computes: loss, gradient norm, gradients and memory over six steps.

The truth is a plain loop over whole batches with autograd and torch's AdamW (`cases.train_plainly`); where the engine
has parts that the loop lacks (dropout, Adafactor), one rank of the engine without ZeRO.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.parallel.cases import Outcome, config, join, train_on_rank, train_plainly
from tests.parallel.matrix import LOSS, NORM, STATE, Case, Differences, full, largest_difference, pairwise, truth
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

WEIGHT = (
    2e-4  # AdamW divides by the root of the second moment: rounding in a tiny gradient moves a weight by a share of lr
)

SEEDS = (4, 14)  # as in `matrix.Variant`: no input of a ReLU comes too near zero; not so on every processor

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2": {"tensor": 2},
    "tp2-sequence": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "pp2-recompute": {"pipeline": 2, "recompute": True},
    "dp2": {"data": 2},
    "dp2-zero2": {"data": 2, "zero_stage": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "dp3-uneven": {"data": 3, "uneven_streams": True},  # one rank has two of the four streams
    "tp2-pp2-micro2": {"tensor": 2, "pipeline": 2, "micro_batch": 2},
    "tp2-pp2-dp2": {"tensor": 2, "pipeline": 2, "data": 2},
    "tp2-pp2-sequence": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
}


@cache
def plain(seed: int) -> Outcome:
    return train_plainly(config(seed=seed))


@pytest.mark.parametrize("case", pairwise(full()), ids=lambda case: case.name)
def test_layout_computes_what_one_process_computes(ranks: RankPool, case: Case) -> None:
    """A selection of the matrix in which every pair of options meets.

    Where gradients alone differ a second seed is tried: processors round differently, and with no seed do all inputs of
    all ReLUs stay away from zero on all of them.  A layout that is wrong is so with every seed.
    """
    differences = []
    for shift in (0, 10):
        given, expected = case.config(shift), truth(case.variant, shift)
        found = join(ranks.run(given.parallel.world_size, train_on_rank, given))
        differences.append(Differences.between(found, expected))
        if differences[-1].is_within_bounds or not differences[-1].is_of_gradients_alone:
            break
    assert differences[-1].is_within_bounds, differences


@pytest.mark.parametrize("layout", ["one", "tp2-pp2-micro2", "dp2-zero2", "dp2-zero3", "dp3-uneven"])
def test_adamw_moves_weights_alike(ranks: RankPool, layout: str) -> None:
    expect_alike(lambda seed: run(ranks, seed, parallel=LAYOUTS[layout]), plain)


@pytest.mark.parametrize("layout", ["tp2", "tp2-sequence", "pp2-recompute", "tp2-pp2-dp2", "tp2-pp2-sequence"])
def test_dropout_masks_do_not_depend_on_the_layout(ranks: RankPool, layout: str) -> None:
    # with the first seed no gradient is so near zero that AdamW makes a step of its rounding
    expect_alike(
        lambda seed: run(ranks, seed, parallel=LAYOUTS[layout], model={"dropout": 0.1}),
        lambda seed: run(ranks, seed, parallel={"zero_stage": 0}, model={"dropout": 0.1}),
        seeds=(5, 15),
    )


def test_dropout_masks_with_feedback_do_not_depend_on_the_layout(ranks: RankPool) -> None:
    model: dict[str, Any] = {"dropout": 0.1, "feedback": True}
    layout = {"tensor": 2, "data": 2, "recompute": True, "sequence_parallel": True}
    expect_alike(
        lambda seed: run(ranks, seed, parallel=layout, model=model),
        lambda seed: run(ranks, seed, parallel={"zero_stage": 0}, model=model),
        seeds=(5, 15),
    )


ADAFACTOR = {"name": "adafactor", "learning_rate": 3e-2, "clip_norm": None}
FACTORED = {
    "width": 128,
    "head_dim": 32,
    "mlp_width": 128,
    "vocab_size": 200,
    "states": 128,
}  # big enough to be factored


@pytest.mark.parametrize("layout", ["tp2", "dp2", "dp2-zero2", "tp2-pp2-dp2", "tp2-sequence"])
def test_adafactor_sees_whole_matrices_in_every_layout(ranks: RankPool, layout: str) -> None:
    expect_alike(
        lambda seed: run(ranks, seed, parallel=LAYOUTS[layout], model=FACTORED, optimizer=ADAFACTOR),
        lambda seed: run(ranks, seed, parallel={"zero_stage": 0}, model=FACTORED, optimizer=ADAFACTOR),
    )


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2", "dp2-zero2", "dp2-zero3", "tp2-pp2-sequence"])
def test_bf16_stays_near_fp32(ranks: RankPool, layout: str) -> None:
    """bf16 has 8 bits of mantissa: the loss of about 5 may be off by a few thousandths, and no more."""
    found, expected = run(ranks, SEEDS[0], parallel=LAYOUTS[layout], precision="bf16"), plain(SEEDS[0])
    for here, there in zip(found.losses, expected.losses, strict=True):
        assert here == pytest.approx(there, abs=1e-2)
    for here, there in zip(found.grad_norms, expected.grad_norms, strict=True):
        assert here == pytest.approx(there, rel=5e-2)


def run(ranks: RankPool, seed: int, **settings: Any) -> Outcome:
    given = config(seed=seed, **settings)
    return join(ranks.run(given.parallel.world_size, train_on_rank, given))


def expect_alike(
    of_layout: Callable[[int], Outcome], of_truth: Callable[[int], Outcome], seeds: tuple[int, int] = SEEDS
) -> None:
    """Compare what a layout computes from a seed with the truth; as above, a second seed is tried."""
    for seed in seeds:
        found, truth = of_layout(seed), of_truth(seed)
        off = [
            what
            for what, is_alike in (
                ("losses", found.losses == pytest.approx(truth.losses, abs=LOSS)),
                ("gradient norms", found.grad_norms == pytest.approx(truth.grad_norms, abs=NORM)),
                ("memory", largest_difference(found.memory, truth.memory) <= STATE),
                ("weights", largest_difference(found.weights, truth.weights) <= WEIGHT),
            )
            if not is_alike
        ]
        if not off:
            return
    pytest.fail(f"{', '.join(off)} differ: losses {found.losses} instead of {truth.losses}")
