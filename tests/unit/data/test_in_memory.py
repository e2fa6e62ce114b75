"""A dataset in memory reads as one on disk does."""

from pathlib import Path

import numpy as np
import pytest

from brt_dist.data.dataset import Dataset
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.data.tokenizers import ByteTokenizer
from brt_dist.errors import DataError
from tests.datasets import make_dataset

TEXTS = ["one", "a longer document of several blocks " * 3, "x", "ünicode " * 9, "the last"]


def test_streams_read_the_same_as_from_shards(tmp_path: Path) -> None:
    make_dataset(tmp_path, TEXTS)
    ours = InMemoryDataset.of_texts(TEXTS, ByteTokenizer())
    with Dataset.open(tmp_path / "dataset") as theirs:
        assert ours.documents == theirs.documents and ours.vocab_size == theirs.vocab_size
        assert np.array_equal(ours.lengths, theirs.lengths)
        schedule = StreamSchedule(ours.lengths, streams=3, segment=16, window=8, seed=1)
        cursor = schedule.start()
        for _ in range(12):
            plan, cursor = schedule.step(cursor)
            found, expected = (SegmentReader(data, schedule).read(plan, range(3)) for data in (ours, theirs))
            assert np.array_equal(found.input, expected.input) and np.array_equal(found.target, expected.target)


def test_empty_documents_are_left_out_and_there_must_be_others() -> None:
    assert InMemoryDataset.of_texts(["", "a", ""], ByteTokenizer()).lengths.tolist() == [1]
    with pytest.raises(DataError, match="at least one document"):
        InMemoryDataset.of_texts([""], ByteTokenizer())
