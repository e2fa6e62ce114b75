"""Smooths curves for plots and the report."""

from collections.abc import Sequence

_SHARE = 0.04  # of all points, in the window of the mean
RAW_ALONE = 50  # a curve with at most this many points is drawn unchanged


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window around each point.

    Towards the ends the window shrinks on both sides, so the first and the last value stay what they are: a window cut
    off on one side would begin below a falling curve and end above it.
    """
    half = max(int(len(values) * _SHARE / 2), 1)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    sides = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [(sums[i + side + 1] - sums[i - side]) / (2 * side + 1) for i, side in enumerate(sides)]


def settled(points: Sequence[tuple[float, float]], warmup: int) -> list[tuple[float, float]]:
    """The points that decide how high a plot is: those after warm-up, once they are most of the curve."""
    after = [point for point in points if point[0] > warmup]
    return after if len(after) > len(points) / 2 else list(points)
