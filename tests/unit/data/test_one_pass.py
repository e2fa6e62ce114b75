"""The evaluation schedule: every document once, whatever the number of streams."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.data.one_pass import OnePassSchedule


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    streams=st.integers(1, 9),
    blocks=st.integers(1, 4),
    window=st.integers(1, 16),
)
def test_reads_every_token_once_and_then_idles(lengths: list[int], streams: int, blocks: int, window: int) -> None:
    schedule = OnePassSchedule(np.array(lengths), streams=streams, segment=blocks * window, window=window)
    cursor, seen, targets = schedule.start(), [np.zeros(n, dtype=int) for n in lengths], 0
    for _ in range(sum(lengths) + 1):
        if schedule.is_finished(cursor):
            break
        plan, cursor = schedule.step(cursor)
        targets += plan.loss_tokens
        for document, offset, length, starts in zip(
            plan.document.flat, plan.offset.flat, plan.length.flat, plan.starts.flat, strict=True
        ):
            seen[document][offset : offset + length] += 1
            assert starts == (offset == 0)
    assert schedule.is_finished(cursor)
    assert all((count == 1).all() for count in seen)
    assert targets == sum(n - 1 for n in lengths)
    plan, _ = schedule.step(cursor)
    assert plan.length.sum() == 0 and plan.loss_tokens == 0
