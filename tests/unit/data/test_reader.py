"""Dataset and reader: what a stream reads is the text of its documents, token by token, in any layout and order."""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.data.dataset import Dataset
from brt_dist.data.reader import Prefetcher, SegmentReader, Segments
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import DataError
from tests.datasets import make_dataset

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 40, 100, 3, 1, 33]
DOCUMENTS = [
    "".join(random.Random(length * 100 + n).choices("abcdefgh ", k=length)) for n, length in enumerate(LENGTHS)
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    folder = tmp_path_factory.mktemp("reader")
    report = make_dataset(folder, DOCUMENTS, shard_size=50)
    assert len(report.dataset.shards) > 3
    with Dataset.open(folder / "dataset") as opened:
        yield opened


shapes = st.tuples(st.integers(1, len(LENGTHS)), st.integers(1, 9), st.integers(1, 5), st.integers(0, 1 << 32))


def schedule_of(dataset: Dataset, shape: tuple[int, int, int, int]) -> StreamSchedule:
    streams, window, blocks, seed = shape
    return StreamSchedule(dataset.lengths, streams=streams, segment=window * blocks, window=window, seed=seed)


def test_a_dataset_gives_the_documents_back(dataset: Dataset) -> None:
    assert dataset.lengths.tolist() == LENGTHS and dataset.vocab_size == 256
    for number, text in enumerate(DOCUMENTS):
        assert bytes(dataset.tokens(number, 0, len(text)).astype(np.uint8)).decode() == text
        assert dataset.tokens(number, len(text) - 1, 1).tolist() == [ord(text[-1])]
        assert dataset.source(number)["source"] == f"corpus/{number:05d}.txt"


def test_tokens_outside_a_document_are_refused(dataset: Dataset) -> None:
    for document, offset, count in ((0, 0, 2), (0, -1, 1), (4, 3, 3), (4, 0, -1), (-1, 0, 1), (len(LENGTHS), 0, 1)):
        with pytest.raises(IndexError):
            dataset.tokens(document, offset, count)


@settings(deadline=None)
@given(shape=shapes, steps=st.integers(1, 6))
def test_segments_hold_what_the_plan_says(dataset: Dataset, shape: tuple[int, int, int, int], steps: int) -> None:
    """Token by token from the texts: input, the next token of the same document as target, mask, starts, padding."""
    schedule = schedule_of(dataset, shape)
    reader, cursor = SegmentReader(dataset, schedule), schedule.start()
    for _ in range(steps):
        plan, cursor = schedule.step(cursor)
        got = reader.read(plan, range(schedule.streams))
        assert got.input.dtype == got.target.dtype == np.int64
        assert np.array_equal(got.starts, plan.starts) and got.mask.sum() == plan.loss_tokens
        for stream, block, position in np.ndindex(schedule.streams, schedule.blocks, schedule.window):
            text = DOCUMENTS[plan.document[stream, block]]
            place = int(plan.offset[stream, block]) + position
            at = (stream, block * schedule.window + position)
            assert got.input[at] == (ord(text[place]) if place < len(text) else 0)
            assert got.mask[at] == (place + 1 < len(text))
            assert got.target[at] == (ord(text[place + 1]) if place + 1 < len(text) else 0)


@settings(deadline=None, max_examples=30)
@given(shape=shapes)
def test_an_epoch_has_every_token_as_input_once(dataset: Dataset, shape: tuple[int, int, int, int]) -> None:
    """Of the tokens read until the first epoch is complete, those of the first epoch are the corpus."""
    streams, window, _, seed = shape
    schedule = schedule_of(dataset, (streams, window, 1, seed))
    reader, cursor, found = SegmentReader(dataset, schedule), schedule.start(), Counter[str]()
    while found.total() < sum(LENGTHS):
        plan, cursor = schedule.step(cursor)
        got = reader.read(plan, range(streams))
        for stream in np.flatnonzero(cursor.ordinal < len(LENGTHS)).tolist():
            found.update(map(chr, got.input[stream, : plan.length[stream, 0]].tolist()))
    assert found == Counter("".join(DOCUMENTS))


def same(one: Segments, other: Segments) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Segments))


@settings(deadline=None)
@given(shape=shapes, resume=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_any_split_and_any_resume_read_the_same(
    dataset: Dataset, shape: tuple[int, int, int, int], resume: int, order: random.Random
) -> None:
    schedule = schedule_of(dataset, shape)
    cursors, whole = [schedule.start()], []
    for _ in range(resume + 1):
        plan, cursor = schedule.step(cursors[-1])
        whole.append(SegmentReader(dataset, schedule).read(plan, range(schedule.streams)))
        cursors.append(cursor)
    # Another process: a new schedule, started from the stored cursor, reading some streams in some order.
    fresh = schedule_of(dataset, shape)
    plan, _ = fresh.step(type(cursor).from_json(cursors[resume].to_json()))
    streams = list(range(schedule.streams))
    order.shuffle(streams)
    cut = order.randint(0, len(streams))
    for part in (streams[:cut], streams[cut:]):
        got = SegmentReader(dataset, fresh).read(plan, part)
        assert got.input.shape == (len(part), fresh.segment)
        for name in ("input", "target", "mask", "starts"):
            assert np.array_equal(getattr(got, name), getattr(whole[resume], name)[part])
        assert got.streams.tolist() == part


def test_the_prefetcher_reads_the_same_and_stops(dataset: Dataset) -> None:
    schedule = schedule_of(dataset, (4, 4, 3, 11))
    reader, cursor = SegmentReader(dataset, schedule), schedule.start()
    prefetcher = Prefetcher(reader, schedule, cursor, [3, 1], depth=2)
    for _ in range(20):
        plan, cursor = schedule.step(cursor)
        got_plan, got, got_cursor, wait = prefetcher.next()
        assert same(got, reader.read(plan, [3, 1])) and np.array_equal(got_plan.document, plan.document)
        assert got_cursor.to_json() == cursor.to_json()
        assert wait >= 0
    prefetcher.close()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.next()


def test_an_error_while_reading_ahead_is_raised_where_it_is_needed(tmp_path: Path) -> None:
    """The steps before it are still given out; after it, every call raises."""
    make_dataset(tmp_path, ["a" * 60, "b" * 60, "c" * 60], shard_size=60)
    dataset = Dataset.open(tmp_path / "dataset")
    schedule = StreamSchedule(dataset.lengths, streams=1, segment=60, window=60, seed=0)
    first, second = (int(schedule.step(schedule.at(step))[0].document[0, 0]) for step in (0, 1))
    (tmp_path / "dataset" / dataset.record.shards[second].name).unlink()
    prefetcher = Prefetcher(SegmentReader(dataset, schedule), schedule, schedule.start(), [0])
    _, segments, _, _ = prefetcher.next()
    assert segments.input[0, 0] == ord("abc"[first])
    for _ in range(2):
        with pytest.raises(DataError, match=dataset.record.shards[second].name):
            prefetcher.next()
    prefetcher.close()


def test_more_shards_than_may_be_open_at_once(tmp_path: Path) -> None:
    """300 shards, read back and forth; views stay valid when their shard is no longer mapped."""
    texts = [f"{number:010d}" for number in range(300)]
    make_dataset(tmp_path, texts, shard_size=10)
    with Dataset.open(tmp_path / "dataset") as dataset:
        assert len(dataset.record.shards) == 300
        views = [dataset.tokens(number, 0, 10) for number in range(300)]
        assert dataset._files._map.cache_info().currsize <= 256
    assert ["".join(map(chr, view)) for view in views] == texts
