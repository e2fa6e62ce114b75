"""Mixtures of datasets: shares of tokens are exact over every prefix, and everything else holds as for one dataset."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import open_weighted
from brt_dist.data.mixture_order import Deal
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import DataError
from tests.datasets import make_dataset


@st.composite
def mixtures(draw: st.DrawFn) -> StreamSchedule:
    sizes = draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=9), min_size=1, max_size=4))
    window, streams = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    weights = [draw(st.sampled_from([1, 0.1, 0.7, 2.5, 1e-3, 100])) for _ in sizes]
    parts = [np.array(lengths, dtype=np.int64) for lengths in sizes]
    seed = draw(st.integers(0, 2**63 - 1))
    fit = Deal(parts, weights, seed).documents_until_repeat(streams)
    segment = window * draw(st.integers(1, 4))
    return StreamSchedule(parts, streams=fit, segment=segment, window=window, seed=seed, weights=weights)


@settings(max_examples=40)
@given(schedule=mixtures(), steps=st.integers(1, 40))
def test_shares_are_exact_over_any_prefix_to_within_a_document_per_stream(schedule: StreamSchedule, steps: int) -> None:
    """After every block, each part has its share of the R tokens read, within one document per stream."""
    single, cursor = schedule.block_by_block(), schedule.start()
    read = [0] * len(schedule.parts)
    shares = [Fraction(str(weight)) for weight in schedule.weights]
    longest = max(int(part.max()) for part in schedule.parts)
    allowed = max(schedule.streams, len(schedule.parts) - 1) * longest
    for _ in range(steps * schedule.blocks):
        plan, cursor = single.step(cursor)
        for stream in range(schedule.streams):
            read[cursor.part[stream]] += int(plan.length[stream, 0])
        for part, share in enumerate(shares):
            assert abs(read[part] - share / sum(shares) * sum(read)) <= allowed
    handed_out = [sum(int(schedule.deal.look_up(np.array([part]), np.array([g]))[1][0]) for g in range(count))
                  for part, count in enumerate(cursor.next)]  # fmt: skip
    assert list(cursor.tokens) == handed_out


@settings(max_examples=40)
@given(schedule=mixtures(), steps=st.integers(1, 30), data=st.data())
def test_every_document_comes_in_the_order_of_its_part_and_whole(
    schedule: StreamSchedule, steps: int, data: st.DataObject
) -> None:
    """Whatever streams come and go, the documents of each part are begun in order, and no block is read twice."""
    cursor, seen = schedule.start(), Counter[tuple[int, int, int]]()
    for _ in range(steps):
        single = schedule.block_by_block()
        for _ in range(schedule.blocks):
            plan, cursor = single.step(cursor)
            for stream in range(schedule.streams):
                place = (int(cursor.part[stream]), int(cursor.ordinal[stream]), int(plan.offset[stream, 0]))
                seen[place] += 1
                part, document = place[0], int(plan.document[stream, 0]) - int(schedule.deal.firsts[place[0]])
                left = int(schedule.parts[part][document]) - place[2]
                assert plan.length[stream, 0] == min(left, schedule.window)
        if data.draw(st.booleans()):
            streams = schedule.deal.documents_until_repeat(data.draw(st.integers(1, 9)))
            schedule, cursor = schedule.resized(streams), cursor.resized(streams)
    assert set(seen.values()) == {1}
    unread = {(part, ordinal) for part, ordinal, _ in cursor.returned}
    current = set(zip(cursor.part.tolist(), cursor.ordinal.tolist(), strict=True))
    for part, count in enumerate(cursor.next):
        for ordinal in range(count):
            length = int(schedule.deal.look_up(np.array([part]), np.array([ordinal]))[1][0])
            offsets = {o for o in range(0, length, schedule.window) if (part, ordinal, o) in seen}
            if (part, ordinal) not in unread | current:
                assert offsets == set(range(0, length, schedule.window))


@settings(max_examples=40)
@given(schedule=mixtures(), steps=st.integers(0, 12), more=st.integers(0, 6))
def test_the_cursor_of_a_step_is_the_same_from_anywhere(schedule: StreamSchedule, steps: int, more: int) -> None:
    cursor = schedule.start()
    for _ in range(steps):
        cursor = Cursor.from_json(schedule.step(cursor)[1].to_json())
    assert schedule.at(steps).to_json() == cursor.to_json()
    assert schedule.skip(cursor, more).to_json() == schedule.at(steps + more).to_json()


@given(schedule=mixtures())
def test_a_mixture_of_one_is_the_dataset(schedule: StreamSchedule) -> None:
    part = schedule.parts[0]
    shape = {"streams": 1, "segment": schedule.segment, "window": schedule.window, "seed": schedule.seed}
    alone = StreamSchedule(part, **shape)
    mixed = StreamSchedule([part], weights=[0.3], **shape)
    one, other = alone.start(), mixed.start()
    for _ in range(5):
        (plan, one), (same, other) = alone.step(one), mixed.step(other)
        assert np.array_equal(plan.document, same.document) and one.to_json() == other.to_json()


def test_equal_datasets_are_read_in_different_orders() -> None:
    lengths = np.full(50, 8, dtype=np.int64)
    schedule = StreamSchedule([lengths, lengths], streams=1, segment=8, window=8, seed=3, weights=[1, 1])
    cursor, found = schedule.start(), ([], [])  # type: ignore[var-annotated]
    for _ in range(100):
        plan, cursor = schedule.step(cursor)
        found[cursor.part[0]].append(int(plan.document[0, 0]) % 50)
    assert sorted(found[0]) == sorted(found[1]) == list(range(50)) and found[0] != found[1]


def test_a_document_longer_than_the_rest_of_the_epoch() -> None:
    """One stream is in it while the others go through several epochs of all else."""
    lengths = np.array([1000, 4, 4, 4], dtype=np.int64)
    schedule = StreamSchedule(lengths, streams=2, segment=4, window=4, seed=1)
    cursor, long, count = schedule.start(), 0, Counter[int]()
    for _ in range(250 + 2):
        plan, cursor = schedule.step(cursor)
        long += int(plan.length[plan.document == 0].sum())
        count.update(plan.document[plan.document != 0].tolist())
    assert long >= 1000 and max(count.values()) - min(count.values()) <= 1


def test_refusals_name_what_would_fit() -> None:
    small, large = np.full(3, 10, dtype=np.int64), np.full(100, 10, dtype=np.int64)
    shape = {"segment": 8, "window": 4, "seed": 0}
    with pytest.raises(DataError, match=r"\(its datasets have 3, 100 documents\): use at most 6 streams"):
        StreamSchedule([small, large], streams=20, weights=[1, 1], **shape)
    StreamSchedule([small, large], streams=6, weights=[1, 1], **shape)
    StreamSchedule([small, large], streams=20, weights=[0.1, 0.9], **shape)
    with pytest.raises(DataError, match="weights of a mixture must be positive, got 1, 0"):
        StreamSchedule([small, large], streams=2, weights=[1, 0], **shape)
    with pytest.raises(DataError, match="1 weights for a mixture of 2"):
        StreamSchedule([small, large], streams=2, **shape)


class Counted:
    """Lengths of very many documents, computed when asked, that count how many were asked for."""

    def __init__(self, size: int) -> None:
        self.size, self.ndim, self.looked_up = size, 1, 0

    def __getitem__(self, documents: np.ndarray) -> np.ndarray:
        self.looked_up += documents.size
        return 2000 + documents % 4001


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_costs_its_documents_at_any_position(parts: int) -> None:
    """At step 1,000,000 of ten million documents no more lengths are looked up than at the first."""
    lengths = [Counted(10_000_000) for _ in range(parts)]
    schedule = StreamSchedule(
        lengths, streams=64, segment=4096, window=512, seed=1, weights=[0.5, 0.3, 0.2][:parts]  # type: ignore[arg-type]
    )  # fmt: skip
    late = Cursor.fresh(64, parts)
    handed_out = tuple(10**6 * 64 for _ in range(parts))
    late = replace(late, next=handed_out, tokens=tuple(count * 4000 for count in handed_out))
    costs = []
    for begin in (schedule.start(), Cursor.from_json(late.to_json())):
        cursor, before = begin, sum(part.looked_up for part in lengths)
        for _ in range(10):
            _, cursor = schedule.step(cursor)
        costs.append(sum(part.looked_up for part in lengths) - before)
    assert max(costs) < 10 * 64 * 8 * (parts + 2), costs  # at most: each block of each stream begins a document


def test_shares_that_are_no_binary_fractions_are_exact() -> None:
    """0.1 is a tenth: after 10^6 documents there is no drift."""
    lengths = [np.full(10, 7, dtype=np.int64) for _ in range(3)]
    deal = Deal(lengths, [0.1, 0.2, 0.7], seed=0)
    dealt, tokens = [0] * 3, [0] * 3
    deal.take(dealt, tokens, 100_000)
    assert dealt == [10_000, 20_000, 70_000]


def test_a_mixture_of_datasets_reads_the_texts_of_its_documents(tmp_path: Path) -> None:
    texts = [[f"{name}{number}" * (number + 1) for number in range(6)] for name in "ab"]
    folders = [make_dataset(tmp_path / str(n), part, shard_size=30).folder for n, part in enumerate(texts)]
    with open_weighted([(folders[0], 0.25), (folders[1], 0.75)]) as mixture:
        assert [part.size for part in mixture.parts] == [6, 6] and mixture.lengths.tolist() == [
            len(text) for part in texts for text in part
        ]
        for document, text in enumerate(texts[0] + texts[1]):
            assert bytes(mixture.tokens(document, 0, mixture.length(document)).astype(np.uint8)).decode() == text
        assert mixture.source(7)["source"] == "corpus/00001.txt" and mixture.source(7)["dataset"] == str(folders[1])
        schedule = StreamSchedule(mixture.parts, weights=mixture.weights, streams=2, segment=8, window=4, seed=0)
        plan, _ = schedule.step(schedule.start())
        got = SegmentReader(mixture, schedule).read(plan, [0, 1])
        for stream in (0, 1):
            text = (texts[0] + texts[1])[plan.document[stream, 0]]
            assert "".join(map(chr, got.input[stream, : plan.length[stream, 0]])) == text[:4]
        with pytest.raises(IndexError):
            mixture.tokens(12, 0, 1)
        digest = mixture.digest
    with open_weighted([(folders[0], 0.5), (folders[1], 0.5)]) as other:
        assert other.digest != digest
    with open_weighted([(folders[0], 3.0)]) as alone:
        assert isinstance(alone, Dataset)


def test_a_mixture_has_one_tokenizer(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "1", ["some text"]).folder
    other = make_dataset(tmp_path / "2", ["some text"], tokenizer="bpe:260").folder
    with pytest.raises(
        DataError, match=r"data.mixture: .*2/dataset was built with a different tokenizer .*--tokenizer"
    ):
        open_weighted([(one, 1), (other, 1)])
