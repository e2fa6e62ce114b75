"""Which tokens are hidden, and what replaces them."""

import numpy as np

from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.objectives.mlm import MASKED, RANDOM, RATE, MaskedTokens
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader, Segments
from brt_dist.data.stream_schedule import StepReads

TOKENS = 1000
MASKING = MaskedTokens(TOKENS, label=3)


def read(streams: int = 5) -> list[tuple[StepReads, Segments]]:
    random = np.random.default_rng(1)
    dataset = InMemoryDataset([random.integers(TOKENS, size=size) for size in (3, 700, 1, 64, 333, 90)], TOKENS)
    schedule = OnePassSchedule(dataset.lengths, streams=streams, segment=128, window=16)
    reader, cursor, found = SegmentReader(dataset, schedule), schedule.start(), []
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        found.append((plan, reader.read(plan, range(streams))))
    return found


def test_chosen_tokens_are_counted_by_the_schedule_alone_and_are_never_padding() -> None:
    for number, (plan, segments) in enumerate(read(), 1):
        hidden = MASKING.examples(number, plan, segments)
        assert hidden.mask.sum() == MASKING.count(plan)
        length = plan.length.sum(1)
        assert (np.abs(hidden.mask.sum(1) - RATE * length)[length >= 7] <= 0.5).all()
        assert (hidden.mask.sum(1) == 1)[(length > 0) & (length < 7)].all()
        inside = np.tile(np.arange(16), 8) < np.repeat(plan.length, 16, 1)
        assert not (hidden.mask & ~inside).any()
        assert np.array_equal(hidden.target, segments.input)
        assert np.array_equal(hidden.input[~hidden.mask], segments.input[~hidden.mask])


def test_the_last_token_of_a_document_can_be_hidden_too() -> None:
    """It has no next token, but an encoder can find it."""
    found = 0
    for plan, segments in read():
        hidden = MASKING.examples(1, plan, segments)
        found += int((hidden.mask & ~segments.mask).sum())
    assert found >= 1  # the document of one token, at least


def test_draws_depend_on_step_stream_and_seed_alone() -> None:
    plan, segments = read()[0]
    whole = MASKING.examples(7, plan, segments)
    rows = [3, 1]
    some = Segments(*(getattr(segments, name)[rows] for name in ("input", "target", "mask", "starts", "streams")))
    part = MASKING.examples(7, plan, some)
    assert np.array_equal(part.input, whole.input[rows]) and np.array_equal(part.mask, whole.mask[rows])
    assert not np.array_equal(MASKING.examples(8, plan, segments).mask, whole.mask)
    assert not np.array_equal(MaskedTokens(TOKENS, 4).examples(7, plan, segments).mask, whole.mask)
    assert not np.array_equal(whole.mask[1], whole.mask[3])


def test_most_become_the_mask_token_some_a_random_one_and_some_stay() -> None:
    """All shares are within five standard deviations, and every place is as likely."""
    segment, steps = 512, 400
    tokens = np.random.default_rng(2).integers(TOKENS, size=(1, segment))
    plan = StepReads(*(np.zeros((1, 32), np.int64),) * 2, np.full((1, 32), 16), np.zeros((1, 32), bool), segment - 1)
    segments = Segments(tokens, tokens, np.ones((1, segment), bool), plan.starts, np.zeros(1, np.int64))
    masked = replaced = chosen = 0
    places = np.zeros(segment)
    for number in range(steps):
        hidden = MASKING.examples(number, plan, segments)
        here = hidden.mask
        chosen += int(here.sum())
        masked += int((hidden.input[here] == TOKENS).sum())
        replaced += int(((hidden.input != TOKENS) & (hidden.input != tokens))[here].sum())
        places += here[0]
    assert chosen == steps * 77  # 15 % of 512
    for count, share in ((masked, MASKED), (replaced, RANDOM * (1 - 1 / TOKENS))):
        assert abs(count - share * chosen) < 5 * (chosen * share * (1 - share)) ** 0.5
    assert np.abs(places - steps * 77 / segment).max() < 5 * (steps * RATE * (1 - RATE)) ** 0.5
