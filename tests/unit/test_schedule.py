"""The stream schedule: properties that must hold for any corpus, any B and any seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.errors import DataError
from pipelines.order import EpochOrder
from pipelines.schedule import Cursor, StreamSchedule

untimed = settings(deadline=None)


@st.composite
def schedules(draw: st.DrawFn) -> StreamSchedule:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    window = draw(st.integers(1, 6))
    return StreamSchedule(
        np.array(lengths, dtype=np.int64),
        streams=draw(st.integers(1, len(lengths))),
        segment=window * draw(st.integers(1, 5)),
        window=window,
        seed=draw(st.integers(0, 2**63 - 1)),
    )


def blocks_read(schedule: StreamSchedule, steps: int) -> list[tuple[int, int, int, int, int]]:
    """(block time, stream, document, offset, length) of every block of the first steps, in that order."""
    cursor, found = schedule.start(), []
    for step in range(steps):
        plan, cursor = schedule.step(cursor)
        for block in range(schedule.blocks):
            for stream in range(schedule.streams):
                found.append(
                    (
                        step * schedule.blocks + block,
                        stream,
                        int(plan.document[stream, block]),
                        int(plan.offset[stream, block]),
                        int(plan.length[stream, block]),
                    )
                )
    return found


def slow_schedule(schedule: StreamSchedule, steps: int) -> list[tuple[int, int, int, int, int]]:
    """The same from the words of the contract alone: a clock, a queue of documents, one stream after the other."""
    order: list[int] = []
    window, lengths = schedule.window, schedule.lengths.tolist()
    positions = np.arange(len(lengths), dtype=np.int64)
    epoch = 0

    def take() -> int:
        nonlocal epoch
        if not order:
            order.extend(schedule.order(epoch * len(lengths) + positions).tolist())
            epoch += 1
        return order.pop(0)

    current = [(take(), 0) for _ in range(schedule.streams)]
    found = []
    for time in range(steps * schedule.blocks):
        for stream, position in enumerate(current):
            document, offset = position if position[1] < lengths[position[0]] else (take(), 0)
            found.append((time, stream, document, offset, min(window, lengths[document] - offset)))
            current[stream] = (document, offset + window)
    return found


@untimed
@given(documents=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40))
def test_the_order_of_an_epoch_is_a_permutation(documents: int, seed: int, epoch: int) -> None:
    positions = np.arange(documents, dtype=np.int64)
    order = EpochOrder(documents, seed)(epoch * documents + positions)
    assert np.array_equal(np.sort(order), positions)


def test_a_permutation_at_the_edges_of_powers_of_two() -> None:
    for documents in [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 65535, 65536, 65537]:
        order = EpochOrder(documents, 7)(np.arange(documents, dtype=np.int64))
        assert np.array_equal(np.sort(order), np.arange(documents))


def test_orders_of_seeds_and_epochs_look_independent() -> None:
    """Every document is about equally often at every position, over seeds and over epochs."""
    documents, samples = 5, 4000
    over_seeds = np.array([EpochOrder(documents, seed)(np.arange(documents)) for seed in range(samples)])
    over_epochs = EpochOrder(documents, 3)(np.arange(documents * samples)).reshape(samples, documents)
    for orders in (over_seeds, over_epochs):
        for position in range(documents):
            counts = np.bincount(orders[:, position], minlength=documents)
            chi_square = float(((counts - samples / documents) ** 2).sum() / (samples / documents))
            assert chi_square < 30, (position, counts)  # 4 degrees of freedom: by chance about once in 200,000
        assert len({tuple(order) for order in orders.tolist()}) == 120  # all permutations of 5


def test_the_order_is_fixed_for_ever() -> None:
    """These numbers are part of the format of runs: another order would change what a resumed run reads."""
    first, second = EpochOrder(10, 0)(np.arange(20)).reshape(2, 10).tolist()
    assert first == [1, 3, 9, 4, 5, 2, 7, 6, 0, 8]
    assert second == [0, 8, 4, 9, 7, 5, 3, 6, 1, 2]


@untimed
@given(schedule=schedules(), steps=st.integers(1, 30))
def test_the_schedule_is_the_contract(schedule: StreamSchedule, steps: int) -> None:
    assert blocks_read(schedule, steps) == slow_schedule(schedule, steps)


@untimed
@given(schedule=schedules(), epochs=st.integers(1, 3))
def test_every_token_of_an_epoch_is_read_exactly_once(schedule: StreamSchedule, epochs: int) -> None:
    """The documents of the first epochs, told apart by ordinal, are covered block by block, no block twice."""
    documents = len(schedule.lengths)
    wanted = Counter((g, o) for g in range(epochs * documents) for o in offsets_of(schedule, g))
    found: Counter[tuple[int, int]] = Counter()
    cursor = schedule.start()
    while cursor.ordinal.max() + 1 < epochs * documents or reading(schedule, cursor, epochs).any():
        plan, after = schedule.step(cursor)
        # ordinals of the step: each stream's own at the start, then the next free one at every start of a document
        ordinal, following = cursor.ordinal.copy(), int(cursor.ordinal.max()) + 1
        for block in range(schedule.blocks):
            for stream in range(schedule.streams):
                offset = int(plan.offset[stream, block])
                if plan.starts[stream, block] and not (block == 0 and cursor.offset[stream] == 0):
                    ordinal[stream] = following
                    following += 1
                document = int(schedule.order(ordinal[stream : stream + 1])[0])
                assert document == plan.document[stream, block]
                assert plan.length[stream, block] == min(schedule.window, schedule.lengths[document] - offset)
                if ordinal[stream] < epochs * documents:
                    found[int(ordinal[stream]), offset] += 1
        assert np.array_equal(ordinal, after.ordinal)
        cursor = after
    assert found == wanted


def offsets_of(schedule: StreamSchedule, ordinal: int) -> range:
    document = int(schedule.order(np.array([ordinal]))[0])
    return range(0, int(schedule.lengths[document]), schedule.window)


def reading(schedule: StreamSchedule, cursor: Cursor, epochs: int) -> np.ndarray:
    """Which streams are inside a document of the first `epochs` epochs."""
    wanted = cursor.ordinal < epochs * len(schedule.lengths)
    return wanted & (cursor.offset < schedule.lengths[schedule.order(cursor.ordinal)])


@untimed
@given(schedule=schedules(), steps=st.integers(0, 25))
def test_the_cursor_of_a_step_is_the_same_from_anywhere(schedule: StreamSchedule, steps: int) -> None:
    """Stepping from the start, from a stored cursor, and asking for the step directly all agree."""
    cursor = schedule.start()
    for step in range(steps):
        assert same(schedule.at(step), cursor)
        cursor = Cursor.from_json(schedule.step(cursor)[1].to_json())
    assert same(schedule.at(steps), cursor)


def same(one: Cursor, other: Cursor) -> bool:
    return np.array_equal(one.ordinal, other.ordinal) and np.array_equal(one.offset, other.offset)


@untimed
@given(schedule=schedules(), steps=st.integers(1, 10))
def test_loss_tokens_count_every_token_but_the_last_of_each_document(schedule: StreamSchedule, steps: int) -> None:
    cursor = schedule.start()
    for _ in range(steps):
        plan, cursor = schedule.step(cursor)
        last = plan.offset + plan.length == schedule.lengths[plan.document]
        assert plan.loss_tokens == int((plan.length - last).sum())


def test_a_step_does_not_change_the_cursor_it_was_given() -> None:
    schedule = StreamSchedule(np.array([3, 9, 4]), streams=2, segment=8, window=4, seed=1)
    cursor = schedule.start()
    schedule.step(cursor)
    assert same(cursor, schedule.start())


def test_ten_million_documents_at_a_late_position() -> None:
    """The cost of a step is that of its streams: position 10^15 of 10^7 documents is as good as the first."""
    lengths = np.full(10_000_000, 5000, dtype=np.int64)
    schedule = StreamSchedule(lengths, streams=64, segment=4096, window=512, seed=1)
    cursor = Cursor(np.arange(64, dtype=np.int64) + 10**15, np.zeros(64, dtype=np.int64))
    for _ in range(20):
        plan, cursor = schedule.step(cursor)
    assert cursor.ordinal.min() > 10**15 + 500
    assert plan.document.min() >= 0 and plan.document.max() < 10_000_000


def test_refusals_say_what_would_fit() -> None:
    lengths = np.array([5, 6, 7])
    with pytest.raises(DataError, match="at most 3 streams"):
        StreamSchedule(lengths, streams=4, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match=r"not a multiple of the window 4; 8 would be"):
        StreamSchedule(lengths, streams=2, segment=10, window=4, seed=0)
    with pytest.raises(DataError, match="no documents"):
        StreamSchedule(np.array([], dtype=np.int64), streams=1, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match="document 1 of the dataset is empty"):
        StreamSchedule(np.array([5, 0]), streams=1, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match="positive"):
        StreamSchedule(lengths, streams=0, segment=8, window=4, seed=0)


def test_a_foreign_cursor_is_refused() -> None:
    schedule = StreamSchedule(np.array([5, 6, 7]), streams=2, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match="cursor is of 3 streams, this schedule has 2"):
        schedule.step(Cursor(np.arange(3), np.zeros(3, dtype=np.int64)))
    with pytest.raises(DataError, match="does not fit a window of 4"):
        schedule.step(Cursor(np.arange(2), np.array([0, 6])))
    for broken in ({}, {"ordinal": [1]}, {"ordinal": [1], "offset": ["x"]}, {"ordinal": [1, 2], "offset": [0]}):
        with pytest.raises(DataError, match="not a stream cursor"):
            Cursor.from_json(broken)
