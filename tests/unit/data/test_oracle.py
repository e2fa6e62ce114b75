"""An oracle's labels of the tokens that streams read, against the labels of whole words."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from brt_dist.config.oracle import OracleConfig
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.objectives.base import UNKNOWN
from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import DataError
from brt_dist.languages import FIRST, LANGUAGES, Words, labels

SLOTS = 3


def objective(language: str) -> Oracle:
    return Oracle(256, 0, OracleConfig(language=language, depth=4, slots=SLOTS))


def words(language: str, count: int) -> Iterator[list[int]]:
    drawn, generator = Words(LANGUAGES[language](2, 4), 14), random.Random(3)
    return (drawn.draw(generator) for _ in range(count))


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_of_words_that_segments_cut(language: str) -> None:
    """A stream reads 8 tokens a step, of words of up to 14: what stands before a segment counts."""
    oracle, found = objective(language), list(words(language, 40))
    machine = oracle.machine
    dataset = InMemoryDataset([np.frombuffer(machine.text(word).encode(), np.uint8) for word in found], 256)
    schedule = StreamSchedule(dataset.lengths, streams=3, segment=8, window=4, seed=1)
    reader, cursor, seen, cut = SegmentReader(dataset, schedule, beginnings=True), schedule.start(), set[int](), 0
    for number in range(40):
        plan, cursor = schedule.step(cursor)
        told = oracle.examples(number, plan, reader.read(plan, [2, 0])).labels
        assert told is not None and told.shape == (2, 8, 2 + SLOTS)
        for row, stream in ((0, 2), (1, 0)):
            for block in range(2):
                here = labels(machine, found[int(plan.document[stream, block])])
                assert here is not None
                offset, length = int(plan.offset[stream, block]), int(plan.length[stream, block])
                seen.add(int(plan.document[stream, block]))
                cut += block == 0 and offset > 0
                for place in range(4):
                    label = told[row, 4 * block + place].tolist()
                    if place >= length:
                        assert label == [UNKNOWN] * (2 + SLOTS)
                        continue
                    at = offset + place + 1  # after the start, and the symbols up to this one
                    legal = {FIRST + bit for bit in range(8) if label[0] >> bit & 1}
                    assert legal == {symbol for symbol in here.legal[at + 1] if symbol >= FIRST}
                    assert label[1] == here.states[at]
                    assert label[2:] == [*here.stacks[at], 0, 0, 0][:SLOTS]
    assert cut > 5 and len(seen) > 20


def test_letters_are_the_bits_of_their_bytes() -> None:
    bits = objective("dyck").letters()
    assert {chr(token): int(bits[token]) for token in np.flatnonzero(bits)} == {"(": 1, "[": 2, ")": 4, "]": 8}


@pytest.mark.parametrize(("text", "byte"), [("(]", 93), ("((((( ", 40), ("(a", 97)])
def test_what_is_no_word_is_refused(text: str, byte: int) -> None:
    tokens = np.frombuffer(text.encode(), np.uint8)
    with pytest.raises(DataError, match=rf"language=dyck: a document is not a word of it; byte {byte} cannot follow"):
        objective("dyck").labels(tokens[:0], tokens)
    with pytest.raises(DataError, match="is not a word of it"):
        objective("dyck").labels(tokens, tokens[:0])
