"""The comparison of mixers: what its tasks ask, equal sizes, and that every causal kind is in it."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import copies, mixers, pairs
from benchmarks.mixers_report import table
from benchmarks.models import parameter_count
from benchmarks.questions import tally
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader
from brt_dist.kinds import MIXERS
from brt_dist.model.model import BlockRecurrentModel

SETTINGS: dict[str, Any] = {"segment": 20, "streams": 3, "window": 4, "learning_rate": 1e-2}


def told(task: pairs.Task, tokens: list[int]) -> list[tuple[int, int, int]]:
    """Position, answer and windows since it was written of each question, by reading token after token."""
    held: dict[int, int] = {}
    windows: dict[int, int] = {}
    found = []
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else pairs.NOISE
        if before == pairs.ASK:
            found.append((position, held[token], position // pairs.WINDOW - windows[token]))
        elif pairs.KEYS <= token < pairs.ASK and before < pairs.KEYS:
            held[before], windows[before] = token, position // pairs.WINDOW
    assert len(held) == (pairs.PAIRS if task == "multi-query" else pairs.FEW)
    return found


@pytest.mark.parametrize("task", ["multi-query", "last write"])
def test_answers_are_what_was_written_last(task: pairs.Task) -> None:
    documents = pairs.Pairs(task, (8, 13), 11, (0, 1))
    schedule = OnePassSchedule(documents.lengths, streams=3, segment=20, window=4)
    reader, cursor, found = (
        SegmentReader(documents, schedule),
        schedule.start(),
        dict[int, list[tuple[int, int, int]]](),
    )
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, range(3))
        answer, mask = documents.answers(plan, segments)
        since = documents.distance(plan, segments)
        for row, place in zip(*np.nonzero(mask), strict=True):
            document, offset = (int(of[row, place // 4]) for of in (plan.document, plan.offset))
            asks = offset + place % 4, int(answer[row, place]), int(since[row, place])
            found.setdefault(document, []).append(asks)
    expected = {}
    for document in range(11):
        tokens = documents.tokens(document, 0, documents.length(document)).tolist()
        assert max(tokens) < pairs.VOCAB
        expected[document] = told(task, tokens)
        assert len(expected[document]) == len(tokens) // 4 - (4 if task == "multi-query" else 2)
    assert found == expected


def test_the_second_half_is_asked_and_a_window_never_shows_the_answer() -> None:
    documents = copies.Copies((9, 12), 11, (0, 1))
    schedule = OnePassSchedule(documents.lengths, streams=3, segment=20, window=4)
    reader, cursor, found = SegmentReader(documents, schedule), schedule.start(), dict[int, list[tuple[int, int]]]()
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        answer, mask = documents.answers(plan, reader.read(plan, range(3)))
        for row, place in zip(*np.nonzero(mask), strict=True):
            document, offset = (int(of[row, place // 4]) for of in (plan.document, plan.offset))
            found.setdefault(document, []).append((offset + int(place) % 4, int(answer[row, place])))
    for document in range(11):
        tokens = documents.tokens(document, 0, documents.length(document)).tolist()
        half = len(tokens) // 2
        assert tokens[:half] == tokens[half:] and tokens[0] == copies.MARK
        assert len(set(tokens)) == half and max(tokens) < copies.VOCAB
        assert found[document] == [(at, tokens[at + 1]) for at in range(half, 2 * half - 1)]
        two_layers = 2 * 4  # tokens back
        assert all(answer not in tokens[at - two_layers : at + 1] for at, answer in found[document])


def test_every_causal_kind_is_compared_and_all_have_one_size() -> None:
    assert {kind for kind in MIXERS if MIXERS[kind].is_causal} <= set(mixers.KINDS)
    for layers, width in ((2, 32), (4, 64)):
        models = {kind: mixers.configuration(kind, layers, width, 50, 0, 9, **SETTINGS).model for kind in mixers.KINDS}
        size = parameter_count(models[mixers.REFERENCE])
        for kind, model in models.items():
            used = {model.mixer_of(layer).kind for layer in range(layers)}
            assert used == set(kind.split(", ")) | ({"window"} if kind in ("recurrent", "bst") else set())
            assert abs(parameter_count(model) - size) <= layers * width


def test_answers_that_are_right_are_counted_by_distance() -> None:
    """A model that always says one value is right where that value is the answer, and pays alike for all others."""
    documents = pairs.Pairs("last write", (8, 13), 11, (0, 1))
    config = mixers.configuration("window", 2, 32, pairs.VOCAB, 0, 9, **SETTINGS)
    value = pairs.KEYS + 3

    class Stubborn(torch.nn.Module):
        def blank_memory(self, streams: int) -> list[Any]:
            return []

        def forward(self, tokens: torch.Tensor, memory: Any, starts: torch.Tensor) -> tuple[torch.Tensor, Any]:
            return torch.eye(pairs.VOCAB)[value].expand(tokens.shape[1], len(tokens), -1), memory

    found = tally(cast(BlockRecurrentModel, Stubborn()), config, documents, (0, 1, 3))
    asked = [
        question
        for document in range(11)
        for question in told("last write", documents.tokens(document, 0, documents.length(document)).tolist())
    ]
    bins = [[answer for _, answer, since in asked if low <= since < high] for low, high in ((0, 1), (1, 3), (3, 99))]
    assert min(map(len, bins)) > 5
    assert found.asked.tolist() == list(map(len, bins))
    assert found.right.tolist() == [answers.count(value) for answers in bins]
    wrong = np.log2(pairs.VOCAB - 1 + np.e)  # logits are one for the value and zero for the others
    expected = [len(answers) * wrong - answers.count(value) * np.log2(np.e) for answers in bins]
    assert found.bits == pytest.approx(expected, rel=1e-5)


def test_the_table_has_means_and_the_range_over_seeds() -> None:
    cells = [
        {"kind": "window", "task": "recall", "seed": seed, "accuracy": accuracy}
        for seed, accuracy in enumerate((0.25, 0.5))
    ]
    cells.append({"kind": "lstm", "task": "recall", "seed": 0, "accuracy": 1.0})
    assert table(cells).splitlines()[2:] == ["| window | 0.38 (0.25 to 0.50) |", "| lstm | 1.00 |"]
