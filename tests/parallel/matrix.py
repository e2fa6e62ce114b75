"""The parity matrix: variants of the model x layouts x recompute x sequence parallel x ZeRO.

`python -m tests.parallel` runs all of it; the tests run a selection in which every pair of options still meets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from itertools import combinations, product
from typing import Any

from torch import Tensor

from brt_dist.config.schema import Config
from tests.parallel.cases import Outcome, config, train_plainly

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2, "micro_batch": 2},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "tp2-dp2": {"tensor": 2, "data": 2},
    "pp3": {"pipeline": 3},
    "pp4": {"pipeline": 4},
    "tp4": {"tensor": 4, "micro_batch": 2},
    "tp2-pp2-dp2": {"tensor": 2, "pipeline": 2, "data": 2},
}
_WITHOUT_PIPELINE = tuple(name for name, sizes in LAYOUTS.items() if "pipeline" not in sizes)


@dataclass(frozen=True)
class Variant:
    """A kind of model: what it changes of the case's, and the layouts that it can have (all, unless given).

    With the seed no input of a ReLU may come so near zero (some 5e-7) that rounding decides its gradient: a layout that
    rounds otherwise then takes another course from there on, and is not wrong.
    """

    model: dict[str, Any]
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    seed: int = 3


VARIANTS: dict[str, Variant] = {
    "skip-fixed": Variant({}),
    "skip-lstm": Variant({"gate": "lstm"}),
    "single-fixed": Variant({"cell": "single"}, seed=4),
    "single-lstm": Variant({"cell": "single", "gate": "lstm"}),
    "dual-fixed": Variant({"cell": "dual"}),
    "dual-lstm": Variant({"cell": "dual", "gate": "lstm"}),
    "two-recurrent": Variant({"cell": "dual", "gate": "lstm", "recurrent_layers": (1, 3)}),
    "one-block": Variant({"window": 64}),
    "clear-state": Variant({"clear_state": True}),
    "sliding-window": Variant({"recurrent_layers": ()}),
    "transformer-xl": Variant({"recurrent_layers": (), "window": 64}),
    "rotary": Variant({"positions": "rotary"}),
    "feedback": Variant({"feedback": True}, _WITHOUT_PIPELINE),
    "feedback-two-recurrent": Variant(
        {"feedback": True, "cell": "dual", "gate": "lstm", "recurrent_layers": (1, 3)}, _WITHOUT_PIPELINE, seed=4
    ),
}

# AdamW that is gradient descent: without decay of its moments and with an epsilon beside which they vanish, its step is
# learning_rate/eps * gradient.  So the weights before and after a step tell the gradient, whoever holds it.
RATE = 1.0
_EPSILON = 1e6
DESCENT = {
    "learning_rate": RATE * _EPSILON, "eps": _EPSILON, "betas": (0.0, 0.0), "schedule": "constant", "warmup_steps": 0,
    "clip_norm": 0.5, "weight_decay": 0.0,
}  # fmt: skip

# Bounds in fp32.  That of a gradient is a share of the largest entry of the same parameter, beside the rounding of the
# weights from whose difference it is read.
LOSS, NORM, STATE, GRADIENT, ROUNDING = 1e-5, 1e-4, 1e-5, 1e-3, 2e-6


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    variant: str
    layout: str
    recompute: bool
    sequence_parallel: bool
    zero_stage: int

    @property
    def is_allowed(self) -> bool:
        sizes = LAYOUTS[self.layout]
        return (
            self.layout in VARIANTS[self.variant].layouts
            and ("tensor" in sizes or not self.sequence_parallel)
            and ("pipeline" not in sizes or self.zero_stage == 1)
        )

    @property
    def name(self) -> str:
        flags = ("recompute" if self.recompute else "", "sequence" if self.sequence_parallel else "")
        return ".".join([self.variant, self.layout, *filter(None, flags), f"zero{self.zero_stage}"])

    def config(self, shift: int = 0) -> Config:
        """shift: added to the seed."""
        options = {name: getattr(self, name) for name in ("recompute", "sequence_parallel", "zero_stage")}
        return _config(VARIANTS[self.variant], shift, LAYOUTS[self.layout] | options)


def full() -> list[Case]:
    """All allowed cases."""
    options = product(VARIANTS, LAYOUTS, (False, True), (False, True), range(4))
    return [case for case in (Case(*option) for option in options) if case.is_allowed]


def pairs(case: Case) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of option values that meet in `case`."""
    return combinations(zip((field.name for field in fields(case)), astuple(case), strict=True), 2)


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """A selection of `cases` with every pair of option values that any of them has; the same one each time.

    Greedy: always the case with the most new pairs, the first of several.
    """
    waiting = {case: set(pairs(case)) for case in cases}
    chosen = []
    while waiting:
        best = max(waiting, key=lambda case: len(waiting[case]))
        met = waiting.pop(best)
        if met:
            chosen.append(best)
        waiting = {case: rest - met for case, rest in waiting.items() if rest - met}
    return chosen


@cache
def truth(variant: str, shift: int = 0) -> Outcome:
    """What the plain loop computes."""
    return train_plainly(_config(VARIANTS[variant], shift))


def _config(variant: Variant, shift: int, parallel: dict[str, Any] | None = None) -> Config:
    return config(parallel=parallel, model=variant.model, optimizer=DESCENT, seed=variant.seed + shift)


@dataclass(frozen=True)
class Differences:
    """Largest differences of a run from the truth; `gradient` is in units of its bound."""

    loss: float
    grad_norm: float
    gradient: float
    memory: float
    worst: str  # parameter

    @classmethod
    def between(cls, found: Outcome, truth: Outcome) -> "Differences":
        assert found.gradients.keys() == truth.gradients.keys()
        shares = {name: _share(found.gradients[name], expected) for name, expected in truth.gradients.items()}
        worst = max(shares, key=lambda name: shares[name])
        return cls(
            loss=_largest(found.losses, truth.losses),
            grad_norm=_largest(found.grad_norms, truth.grad_norms),
            gradient=shares[worst],
            memory=largest_difference(found.memory, truth.memory),
            worst=worst,
        )

    @property
    def is_within_bounds(self) -> bool:
        return self.is_of_gradients_alone and self.gradient <= 1

    @property
    def is_of_gradients_alone(self) -> bool:
        """Whether everything else is within its bounds."""
        return self.loss <= LOSS and self.grad_norm <= NORM and self.memory <= STATE


def largest_difference(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert found.keys() == truth.keys()
    return max(float((found[name] - truth[name]).abs().max()) for name in truth)


def _share(found: Tensor, truth: Tensor) -> float:
    """Largest difference over all steps, as a share of what is allowed at that step."""
    allowed = GRADIENT * truth.abs().flatten(1).amax(1) + ROUNDING
    return float(((found - truth).abs().flatten(1).amax(1) / allowed).max())


def _largest(found: Iterable[float], truth: Iterable[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, truth, strict=True))
