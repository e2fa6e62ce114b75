"""Which checkpoints of a run are kept."""

from collections.abc import Collection, Mapping

from brt_dist.config.schema import RunConfig

SCORE = ("validation/carried", "train/carried")  # what "best" means: the first of these that was measured


def score(evaluations: Mapping[str, float]) -> float | None:
    """bits/token by which checkpoints are compared; none where nothing was evaluated."""
    return next((evaluations[key] for key in SCORE if key in evaluations), None)


def to_remove(scores: Mapping[int, float | None], keep: RunConfig, protected: Collection[int] = ()) -> list[int]:
    """Steps whose checkpoints go, oldest first.

    The newest `keep_checkpoints` stay, those whose step `keep_every` divides, and the `keep_best` with the lowest
    score among those that were evaluated (ties: the newer one).

    Args:
        scores: bits/token on held-out data by step, none where it was not evaluated.
        protected: steps that stay in any case.
    """
    steps = sorted(scores)
    newest = steps[-keep.keep_checkpoints :]
    evaluated = [(score, -step) for step, score in scores.items() if score is not None]
    best = [-step for _, step in sorted(evaluated)[: keep.keep_best]]
    stay = {*newest, *best, *protected}
    return [step for step in steps if step not in stay and not (keep.keep_every and step % keep.keep_every == 0)]
