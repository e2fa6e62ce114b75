"""Any optimizer makes the same steps in every layout that it allows, and its state moves with the run.

A new kind is covered by its line in `kinds.py`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from brt_dist.kinds import OPTIMIZERS
from tests.parallel import cases, relayout
from tests.parallel.cases import Outcome, join, train_on_rank
from tests.parallel.matrix import LOSS, NORM
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
}
ALLOWED = [
    (kind, layout)
    for kind in OPTIMIZERS
    for layout, parallel in LAYOUTS.items()
    if parallel.get("zero_stage", 1) not in OPTIMIZERS[kind].refused_zero_stages
]
# both sides of matrices are large enough for kinds that treat those differently
LARGE = {"width": 128, "head_dim": 32, "mlp_width": 128, "vocab_size": 200, "states": 128}


def settings(kind: str) -> dict[str, Any]:
    """At its own learning rate, beside which differences are to be judged."""
    return {"name": kind, "learning_rate": OPTIMIZERS[kind]().learning_rate, "warmup_steps": 2}


@pytest.mark.parametrize(("kind", "layout"), ALLOWED)
def test_steps_do_not_depend_on_the_layout(ranks: RankPool, kind: str, layout: str) -> None:
    """With one seed of two: a ReLU's input that is zero but for rounding gives a layout another gradient."""
    assert any(steps_are_equal(ranks, kind, layout, seed) for seed in (3, 4))


def steps_are_equal(ranks: RankPool, kind: str, layout: str, seed: int) -> bool:
    found, expected = outcome(ranks, kind, layout, seed), outcome(ranks, kind, "one", seed)
    assert all((values[-1] != values[0]).any() for values in expected.history.values()), "a parameter never moved"
    return found.losses == pytest.approx(expected.losses, abs=LOSS) and found.grad_norms == pytest.approx(
        expected.grad_norms, abs=NORM
    )


@cache
def outcome(ranks: RankPool, kind: str, layout: str, seed: int) -> Outcome:
    parallel = LAYOUTS.get(layout, {"zero_stage": 0})
    given = cases.config(parallel=parallel, model=LARGE, optimizer=settings(kind), seed=seed)
    return join(ranks.run(given.parallel.world_size, train_on_rank, given))


@pytest.mark.parametrize(
    ("kind", "layout"), [(kind, layout) for kind, layout in ALLOWED if layout in ("pp2", "dp2-zero3")]
)
def test_resumed_run_is_bitwise_the_uninterrupted_run(ranks: RankPool, tmp_path: Path, kind: str, layout: str) -> None:
    data = relayout.documents(tmp_path)
    found = {}
    for name, attempts in (("straight", (5,)), ("stopped", (2, 3))):
        run = tmp_path / name
        run.mkdir()
        sections = {"optimizer": settings(kind), "run": {"directory": run, "precision": "bf16"}}
        given = relayout.config(data, run, LAYOUTS[layout], **sections)
        for steps in attempts:
            ranks.run(given.parallel.world_size, relayout.attempt, given, steps)
        found[name] = relayout.saved(run / "checkpoints")
    assert found["stopped"] == found["straight"]
    assert any(tensor.startswith("optimizer/") for tensor in found["straight"]["tensors"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_moves_to_another_layout(ranks: RankPool, tmp_path: Path, kind: str) -> None:
    """What is loaded and saved again is the same files, and the next losses are those of one process."""
    given = relayout.Relayout(ranks, tmp_path, optimizer=settings(kind))
    zero = "dp2" if 3 in OPTIMIZERS[kind].refused_zero_stages else "dp2-zero3"
    for source, target in (("tp2", zero), (zero, "pp2")):
        assert given.compare(source, target) <= relayout.LOSS
