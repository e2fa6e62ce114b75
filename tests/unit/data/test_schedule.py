"""The stream schedule: properties that must hold for any corpus, any B and any seed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.data.epoch_order import EpochOrder
from brt_dist.data.stream_schedule import Cursor, StreamSchedule
from brt_dist.errors import DataError

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
    """The same, written from the contract alone: a clock, a queue of documents, one stream after the other."""
    order: list[int] = []
    window, lengths = schedule.window, schedule.parts[0].tolist()
    order_of = EpochOrder(len(lengths), schedule.seed)
    positions = np.arange(len(lengths), dtype=np.int64)
    epoch = 0

    def take() -> int:
        nonlocal epoch
        if not order:
            order.extend(order_of(epoch * len(lengths) + positions).tolist())
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


@settings(deadline=None, max_examples=40)
@given(schedule=schedules(), epochs=st.integers(1, 3), sizes=st.lists(st.integers(1, 12), max_size=6))
def test_every_token_of_an_epoch_is_read_exactly_once(schedule: StreamSchedule, epochs: int, sizes: list[int]) -> None:
    """The documents of the first epochs, told apart by ordinal, are covered block by block, no block twice.

    With every step the number of streams changes to the next of `sizes`, if there is one.
    """
    documents = len(schedule.parts[0])
    wanted = Counter((g, o) for g in range(epochs * documents) for o in offsets_of(schedule, g))
    found: Counter[tuple[int, int]] = Counter()
    cursor = schedule.start()
    while found.total() < wanted.total():
        if sizes:
            schedule = schedule.resized(min(sizes.pop(0), documents))
            cursor = Cursor.from_json(json.loads(json.dumps(cursor.resized(schedule.streams).to_json())))
        for stream, ordinal, offset, length in ordinals_read(schedule, cursor):
            document = int(schedule.deal.look_up(np.array([0]), np.array([ordinal]))[0][0])
            assert length == min(schedule.window, schedule.parts[0][document] - offset), stream
            if ordinal < epochs * documents:
                found[ordinal, offset] += 1
        cursor = schedule.step(cursor)[1]
    assert found == wanted


def ordinals_read(schedule: StreamSchedule, cursor: Cursor) -> Iterator[tuple[int, int, int, int]]:
    """(stream, ordinal, offset, length) of every block of a step, from steps of a block each, checked with the step."""
    whole, after = schedule.step(cursor)
    single = schedule.block_by_block()
    for block in range(schedule.blocks):
        plan, cursor = single.step(cursor)
        for name in ("document", "offset", "length", "starts"):
            assert np.array_equal(getattr(plan, name)[:, 0], getattr(whole, name)[:, block])
        for stream in range(schedule.streams):
            place = (plan.offset[stream, 0], plan.length[stream, 0])
            yield stream, int(cursor.ordinal[stream]), *map(int, place)
    assert same(cursor, after)


def offsets_of(schedule: StreamSchedule, ordinal: int) -> range:
    document = int(schedule.deal.look_up(np.array([0]), np.array([ordinal]))[0][0])
    return range(0, int(schedule.parts[0][document]), schedule.window)


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
    return one.to_json() == other.to_json()


@untimed
@given(schedule=schedules(), steps=st.integers(1, 10))
def test_loss_tokens_count_every_token_but_the_last_of_each_document(schedule: StreamSchedule, steps: int) -> None:
    cursor = schedule.start()
    for _ in range(steps):
        plan, cursor = schedule.step(cursor)
        last = plan.offset + plan.length == schedule.parts[0][plan.document]
        assert plan.loss_tokens == int((plan.length - last).sum())


def test_a_step_does_not_change_the_cursor_it_was_given() -> None:
    schedule = StreamSchedule(np.array([3, 9, 4]), streams=2, segment=8, window=4, seed=1)
    cursor = schedule.start()
    schedule.step(cursor)
    assert same(cursor, schedule.start())


def test_ten_million_documents_at_a_late_position() -> None:
    """A step costs what its streams cost: position 10^15 of 10^7 documents costs no more than the first."""
    lengths = np.full(10_000_000, 5000, dtype=np.int64)
    schedule = StreamSchedule(lengths, streams=64, segment=4096, window=512, seed=1)
    nobody = Cursor.fresh(64)
    cursor = replace(nobody, ordinal=np.arange(64, dtype=np.int64) + 10**15, next=(10**15 + 64,))
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
    empty = StreamSchedule(np.array([5, 0]), streams=2, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match="document 1 of the dataset is empty"):
        empty.step(empty.start())
    with pytest.raises(DataError, match="positive"):
        StreamSchedule(lengths, streams=0, segment=8, window=4, seed=0)


def test_a_foreign_cursor_is_refused() -> None:
    schedule = StreamSchedule(np.array([5, 6, 7]), streams=2, segment=8, window=4, seed=0)
    with pytest.raises(DataError, match=r"cursor has 3 streams, but this schedule has 2: use `cursor.resized\(2\)`"):
        schedule.step(Cursor.fresh(3))
    with pytest.raises(DataError, match="does not fit a window of 4"):
        schedule.step(replace(Cursor.fresh(2), offset=np.array([0, 6])))
    with pytest.raises(DataError, match="cursor has 2 datasets, but this schedule has 1"):
        schedule.step(Cursor.fresh(2, parts=2))
    good = schedule.step(schedule.start())[1].to_json()
    assert same(Cursor.from_json(good), schedule.step(schedule.start())[1])
    with pytest.raises(DataError, match="version 9; this version reads 1"):
        Cursor.from_json(good | {"version": 9})
    broken: list[dict[str, object]] = [
        {"ordinal": [1]}, {"ordinal": ["x", 1]}, {"offset": [-4, 0]}, {"part": [1, 0]}, {"next": []}, {"tokens": [-1]},
        {"next": [1]}, {"returned": [[0, 1]]}, {"returned": [[0, 9, 4]]}, {"returned": [[1, 0, 4]]},
        {"ordinal": [-2, 0]},
    ]  # fmt: skip
    for change in broken:
        with pytest.raises(DataError, match="not a stream cursor"):
            Cursor.from_json(good | change)
    with pytest.raises(DataError, match="not a stream cursor"):
        Cursor.from_json({})


def test_the_json_of_a_cursor_is_fixed() -> None:
    """Checkpoints hold it: what this version wrote must stay readable forever."""
    schedule = StreamSchedule(np.array([9, 6, 7, 30]), streams=3, segment=8, window=4, seed=0)
    cursor = schedule.step(schedule.start())[1].resized(2)
    assert cursor.to_json() == {
        "version": 1, "ordinal": [0, 1], "offset": [8, 8], "part": [0, 0], "next": [3], "tokens": [45],
        "returned": [[0, 2, 8]],
    }  # fmt: skip


def test_what_a_dropped_stream_left_is_read_on_first_and_with_a_clear_memory() -> None:
    schedule = StreamSchedule(np.array([20, 20, 20, 20]), streams=2, segment=4, window=4, seed=0)
    cursor = schedule.start()
    for _ in range(3):
        cursor = schedule.step(cursor)[1]
    single = schedule.resized(1)
    cursor = cursor.resized(1)
    read = []
    for _ in range(6):
        plan, cursor = single.step(cursor)
        read.append((int(cursor.ordinal[0]), int(plan.offset[0, 0]), bool(plan.starts[0, 0])))
    assert read == [(0, 12, False), (0, 16, False), (1, 12, True), (1, 16, False), (2, 0, True), (2, 4, False)]


@settings(deadline=None, max_examples=40)
@given(schedule=schedules(), data=st.data())
def test_a_resized_run_can_be_looked_ahead(schedule: StreamSchedule, data: st.DataObject) -> None:
    """`skip` is as many steps, from any cursor, also one with returned documents or idle streams."""
    cursor = schedule.skip(schedule.start(), data.draw(st.integers(0, 9)))
    other = schedule.resized(data.draw(st.integers(1, len(schedule.parts[0]))))
    stepped = cursor = cursor.resized(other.streams)
    for steps in range(8):
        assert same(other.skip(cursor, steps), stepped)
        stepped = other.step(stepped)[1]


@untimed
@given(schedules(), st.integers(0, 6))
def test_interrupted_streams_go_on_where_they_were_with_cleared_memory(schedule: StreamSchedule, steps: int) -> None:
    cursor = schedule.start()
    for _ in range(steps):
        _, cursor = schedule.step(cursor)
    plan, after = schedule.step(cursor)
    again, then = schedule.step(Cursor.from_json(cursor.interrupted().to_json()))
    for name in ("document", "offset", "length"):
        first, second = getattr(plan, name)[:, 0], getattr(again, name)[:, 0]
        # a document that had just ended makes room: those behind it move up by one stream
        assert Counter(first.tolist()) == Counter(second.tolist())
    assert again.starts[:, 0].all()
    assert again.loss_tokens == plan.loss_tokens and then.next == after.next
