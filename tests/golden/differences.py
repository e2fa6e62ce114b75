"""How golden files are judged: how far our numbers are from the reference's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

FORWARD_TOLERANCE = 1e-5  # largest absolute difference; of states too
GRADIENT_TOLERANCE = 5e-5  # per tensor: largest absolute difference / largest absolute value

Pairs = Iterable[tuple[Tensor, Tensor]]


class UnknownKind(Exception):
    """A golden file of a kind that nothing here computes."""


class WrongShape(Exception):
    """An array does not have the shape that ours has."""


@dataclass(frozen=True)
class Differences:
    """Largest differences; None where the file has nothing of the sort."""

    forward: float
    state: float | None = None
    gradient: float | None = None

    @property
    def ok(self) -> bool:
        measured = (
            (self.forward, FORWARD_TOLERANCE),
            (self.state, FORWARD_TOLERANCE),
            (self.gradient, GRADIENT_TOLERANCE),
        )
        return all(found <= most for found, most in measured if found is not None)  # false for nan


def differences(forward: Pairs, state: Pairs = (), gradient: Pairs = ()) -> Differences:
    """Of pairs (ours, theirs).

    The differences of outputs and states are relative to the largest value of the tensor if that is above 1: float32
    has no more digits, and states are sums over many tokens.
    """
    return Differences(
        worst([scaled(*pair) for pair in forward]) or 0.0,
        worst([scaled(*pair) for pair in state]),
        worst([relative(*pair) for pair in gradient]),
    )


def worst(found: list[float]) -> float | None:
    return max(found, key=lambda difference: (difference != difference, difference)) if found else None  # noqa: PLR0124


def absolute(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference.

    Raises:
        WrongShape: the two have different shapes.
    """
    if ours.shape != theirs.shape:
        raise WrongShape(f"shape {tuple(theirs.shape)} where ours has {tuple(ours.shape)}")
    return float((ours.detach() - theirs).abs().max())


def scaled(ours: Tensor, theirs: Tensor) -> float:
    """Against the largest value of the tensor, or 1 if all values are smaller."""
    return absolute(ours, theirs) / max(1.0, float(theirs.abs().max()))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Against the largest value of the tensor; a tensor that is zero (a path that was not taken) must be zero."""
    difference, size = absolute(ours, theirs), float(theirs.abs().max())
    return difference / size if size > 0 else difference


def present(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of those of our tensors that the file has an array for."""
    return [(tensor, theirs[name]) for name, tensor in ours.items() if name in theirs]
