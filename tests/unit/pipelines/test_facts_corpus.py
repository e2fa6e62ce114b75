"""Facts in real text: whole documents, answers that occur nowhere else, distances as declared."""

import json
import random
import re
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from benchmarks.facts import Facts
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader
from brt_dist.errors import DataError
from pipelines.corpora import Corpus, Text, write_corpus
from pipelines.facts_corpus import DIGITS, DISTANCES, Settings, asking, telling, with_facts, write_facts

SENTENCE = re.compile(rb"(The code of the|What is the code of the) (\w+ \w+)(?: is|\?) ([0-9]{4})\.\n")
WINDOW = 16


def text(lines: int, seed: int) -> bytes:
    generator = random.Random(seed)
    words = [b"the", b"king", b"1066", b"said", b"0042", b"nothing", b"1623"]
    return b"".join(b" ".join(generator.choices(words, k=generator.randint(0, 12))) + b"\n" for _ in range(lines))


@pytest.fixture
def source(tmp_path: Path) -> Corpus:
    parts = {part: {f"{part}{i}.txt": Text(text(400, i), 1.0) for i in range(2)} for part in ("train", "validation")}
    return write_corpus(tmp_path / "source", "made for a test", parts)


def test_a_fact_is_told_once_and_asked_for_once_and_the_document_is_whole() -> None:
    before = text(1500, 0)
    after, questions = with_facts(before, Settings(WINDOW, 100), random.Random(1))
    assert SENTENCE.sub(b"", after) == before
    assert len(questions) > 100
    found = [(match[1], match[2].decode(), match[3].decode(), match.start(3)) for match in SENTENCE.finditer(after)]
    assert len(found) == 2 * len(questions)
    expected = [
        place
        for question in questions
        for place in (
            (b"The code of the", question.name, question.code, question.told),
            (b"What is the code of the", question.name, question.code, question.asked),
        )
    ]
    assert sorted(found) == sorted(expected)
    assert len({question.name for question in questions}) == len({question.code for question in questions})
    for question in questions:  # digits that occur anywhere else could be copied from there
        assert [match.start() for match in re.finditer(question.code.encode(), after)] == [
            question.told,
            question.asked,
        ]
        assert len(question.code) == DIGITS and question.code not in ("1066", "0042", "1623")


def test_it_is_asked_for_at_the_first_line_that_is_far_enough() -> None:
    after, questions = with_facts(text(1500, 0), Settings(WINDOW, 100), random.Random(1))
    assert {question.windows for question in questions} >= set(DISTANCES[:8])
    ends, here = [0], 0  # of the questions before each line of the text
    for line in after.splitlines(keepends=True):
        match = SENTENCE.fullmatch(line)
        here += len(line)
        if match is None:
            ends.append(here)
        elif match[1].startswith(b"What"):
            ends[-1] = here
    for question in questions:
        due = question.told + question.windows * WINDOW
        assert question.asked >= due
        first = next(end for end in ends if end > question.told and end + len(asking(question.name)) >= due)
        assert question.asked < first


@pytest.mark.parametrize(("at_once", "farthest"), [(1, 10), (1, 1000), (3, 100)])
def test_no_more_facts_are_open_than_may_be_and_none_is_farther(at_once: int, farthest: int) -> None:
    before = text(1500, 0)
    after, questions = with_facts(before, Settings(WINDOW, 50, farthest, at_once), random.Random(1))
    assert SENTENCE.sub(b"", after) == before
    assert {question.windows for question in questions} <= {d for d in DISTANCES if d <= farthest}
    events = [(question.told, 1) for question in questions] + [(question.asked, -1) for question in questions]
    count = list(accumulate(change for _, change in sorted(events)))
    assert max(count) == at_once and len(questions) > 20


def test_short_documents_have_no_facts_and_all_names_can_be_used_up() -> None:
    assert with_facts(b"short\n", Settings(WINDOW, 1), random.Random(0)) == (b"short\n", [])
    long = text(8000, 3)
    after, questions = with_facts(long, Settings(1, 1), random.Random(0))
    assert SENTENCE.sub(b"", after) == long
    assert len(questions) == 32 * 40
    assert telling("red door") + b"1234.\n" == b"The code of the red door is 1234.\n"


def test_a_corpus_has_its_questions_beside_it_and_is_the_same_each_time(source: Corpus, tmp_path: Path) -> None:
    made = [write_facts(tmp_path / name, source, Settings(WINDOW, 100, copies=2, seed=7)) for name in ("a", "b")]
    other = write_facts(tmp_path / "c", source, Settings(WINDOW, 100, copies=2, seed=8))
    assert made[0].train == ("train0.0.txt", "train0.1.txt", "train1.0.txt", "train1.1.txt")
    assert made[0].validation == (
        "validation0.0.txt", "validation0.1.txt", "validation1.0.txt", "validation1.1.txt"
    )  # fmt: skip
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert len(files) == 11
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert (tmp_path / "a/train/train0.0.txt").read_bytes() != (tmp_path / "a/train/train0.1.txt").read_bytes()
    assert (Path(other.folder) / "train/train0.0.txt").read_bytes() != (tmp_path / "a/train/train0.0.txt").read_bytes()
    lines = (tmp_path / "a/questions/validation.jsonl").read_text().splitlines()
    for line in lines:
        question = json.loads(line)
        data = (tmp_path / "a/validation" / question["document"]).read_bytes()
        for place in (question["told"], question["asked"]):
            assert data[place : place + DIGITS].decode() == question["code"]
    with pytest.raises(DataError, match="no document is longer than a window of 1000000 bytes"):
        write_facts(tmp_path / "d", source, Settings(1_000_000, 100))


def test_a_model_is_asked_for_the_digits_of_each_answer(source: Corpus, tmp_path: Path) -> None:
    made = write_facts(tmp_path / "facts", source, Settings(WINDOW, 100, seed=7))
    documents = Facts(tmp_path / "facts", "validation", WINDOW)
    schedule = OnePassSchedule(documents.lengths, streams=2, segment=64, window=32)
    reader, cursor = SegmentReader(documents, schedule), schedule.start()
    found = dict[tuple[str, int], tuple[int, int]]()
    everything = 0
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, range(2))
        target, mask = documents.answers(plan, segments)
        distance = documents.distance(plan, segments)
        everything += int(mask.sum())
        for row, place in zip(*np.nonzero(mask), strict=True):
            document, offset = (int(of[row, place // 32]) for of in (plan.document, plan.offset))
            name = made.validation[document]
            found[name, offset + place % 32 + 1] = (int(target[row, place]), int(distance[row, place]))
    expected = {}
    for line in (tmp_path / "facts/questions/validation.jsonl").read_text().splitlines():
        question = json.loads(line)
        for digit in range(DIGITS):
            value = ord(question["code"][digit]), (question["asked"] - question["told"]) // WINDOW
            expected[question["document"], question["asked"] + digit] = value
    assert everything == len(found) and len(expected) > 100
    assert found == expected
