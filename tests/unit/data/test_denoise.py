"""Which spans are missing from what an encoder reads."""

import numpy as np
import pytest

from brt_dist.data.objectives.denoise import MISSING, SPAN, Denoising, infilled, missing_of
from brt_dist.data.reader import Segments
from tests.unit.data.test_mlm import TOKENS, read

OBJECTIVE = Denoising(TOKENS, label=3)
MASK, FILL = TOKENS, TOKENS + 1


@pytest.mark.parametrize("size", [*range(9), 30, 300])
def test_the_kept_tokens_stay_in_order_and_each_span_leaves_one_mask(size: int) -> None:
    tokens = np.arange(size)
    for seed in range(50):
        left = infilled(tokens, -1, np.random.default_rng(seed))
        kept = left[left >= 0]
        assert (np.diff(kept) > 0).all() and kept.size == size - missing_of(size)
        assert left.size <= size
        assert not ((left[1:] < 0) & (left[:-1] < 0)).any()  # spans do not touch
        # every gap between kept tokens is where a mask is
        gaps = np.flatnonzero(np.diff(kept) > 1)
        assert all(left[left.tolist().index(kept[gap]) + 1] < 0 for gap in gaps)


def test_shares_lengths_and_places_are_bart_s() -> None:
    size, draws = 200, 500
    lengths, missing = [], np.zeros(size)
    for seed in range(draws):
        left = infilled(np.arange(size), -1, np.random.default_rng(seed))
        kept = left[left >= 0]
        is_kept = np.isin(np.arange(size), kept)
        missing += ~is_kept
        spans = np.diff(np.flatnonzero(np.concatenate([[True], is_kept, [True]]))) - 1
        lengths += spans[spans > 0].tolist() + [0] * int((left < 0).sum() - (spans > 0).sum())
    assert missing.sum() == draws * size * MISSING
    # the last span of each draw is cut, so the mean is a little lower
    assert abs(np.mean(lengths) - SPAN) < 0.1
    assert abs(np.mean(np.array(lengths) == 0) - np.exp(-SPAN)) < 0.01
    inside = missing[10:-10] / draws  # ends are as likely, but for spans that would reach beyond them
    assert np.abs(inside - MISSING).max() < 5 * (MISSING * (1 - MISSING) / draws) ** 0.5


def test_targets_are_a_language_model_s_and_the_source_is_of_its_own_segment() -> None:
    for number, (plan, segments) in enumerate(read(), 1):
        asked = OBJECTIVE.examples(number, plan, segments)
        assert asked.source is not None
        assert asked.mask.sum() == OBJECTIVE.count(plan)
        for ours, theirs in ((asked.input, segments.input), (asked.target, segments.target)):
            assert np.array_equal(ours, theirs)
        for row, stream in enumerate(segments.streams):
            length = plan.length[stream].sum()
            source = asked.source[row]
            left = source[source != FILL]
            assert (source[left.size :] == FILL).all()
            assert (left != MASK).sum() == length - missing_of(int(length))


def test_draws_depend_on_step_stream_and_seed_alone() -> None:
    plan, segments = read()[0]
    whole = OBJECTIVE.examples(7, plan, segments).source
    rows = [3, 1]
    some = Segments(*(getattr(segments, name)[rows] for name in ("input", "target", "mask", "starts", "streams")))
    assert whole is not None
    assert np.array_equal(OBJECTIVE.examples(7, plan, some).source, whole[rows])
    assert not np.array_equal(OBJECTIVE.examples(8, plan, segments).source, whole)
    assert not np.array_equal(Denoising(TOKENS, 4).examples(7, plan, segments).source, whole)
