"""Decides which checkpoints of a run to keep."""

from collections.abc import Collection, Mapping

from brt_dist.config.schema import RunConfig

SCORE = ("validation/carried", "train/carried")  # "best" goes by the first of these that was measured


def score(evaluations: Mapping[str, float]) -> float | None:
    """The bits/token by which checkpoints are compared; None if nothing was evaluated."""
    return next((evaluations[key] for key in SCORE if key in evaluations), None)


def to_remove(scores: Mapping[int, float | None], keep: RunConfig, protected: Collection[int] = ()) -> list[int]:
    """Steps whose checkpoints to remove, oldest first.

    Kept are the newest `keep_checkpoints`, those at multiples of `keep_every`, and the `keep_best` evaluated ones with
    the lowest score (ties: the newer one).

    Args:
        scores: bits/token on held-out data by step; None if not evaluated.
        keep: the retention settings.
        protected: steps to keep in any case.
    """
    steps = sorted(scores)
    newest = steps[-keep.keep_checkpoints :]
    evaluated = [(score, -step) for step, score in scores.items() if score is not None]
    best = [-step for _, step in sorted(evaluated)[: keep.keep_best]]
    stay = {*newest, *best, *protected}
    return [step for step in steps if step not in stay and not (keep.keep_every and step % keep.keep_every == 0)]


def without_memory(steps: Collection[int], keep: RunConfig, protected: Collection[int] = ()) -> list[int]:
    """Steps whose checkpoints need not keep the memory of the streams, oldest first: all but the `keep_memory` newest.

    Args:
        steps: of all remaining checkpoints.
        keep: the retention settings.
        protected: steps whose memory is kept in any case.
    """
    if keep.keep_memory is None:
        return []
    return [step for step in sorted(steps)[: -keep.keep_memory] if step not in protected]
