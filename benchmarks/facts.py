"""Facts in real text (`brt data corpus facts`), read byte by byte, and the questions about them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.questions import BoolArray, Int64Array, positions
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from pipelines.facts_corpus import QUESTIONS

VOCAB = 256
CHANCE = 1 / 10  # a digit


class Facts:
    """Documents of a part of a corpus with facts; read like a dataset.

    Args:
        folder: of the corpus.
        part: "train" or "validation".
        window: bytes of a window.
    """

    def __init__(self, folder: Path, part: str, window: int) -> None:
        names = json.loads((folder / "corpus.json").read_text())[part]
        texts = [np.frombuffer((folder / part / name).read_bytes(), np.uint8) for name in names]
        since = {name: np.zeros(len(text), np.int64) for name, text in zip(names, texts, strict=True)}
        for line in (folder / QUESTIONS / f"{part}.jsonl").read_text().splitlines():
            question = json.loads(line)
            asked, digits = question["asked"], len(question["code"])
            # read up to the byte before, a model is asked for each digit
            since[question["document"]][asked - 1 : asked - 1 + digits] = asked - question["told"]
        self._held = InMemoryDataset(texts, VOCAB)
        self.lengths = self._held.lengths
        self._window = window
        self._since = np.concatenate([since[name] for name in names])
        self._first = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def tokens(self, document: int, offset: int, count: int) -> Int64Array:
        """As `Dataset.tokens`."""
        return self._held.tokens(document, offset, count)

    def length(self, document: int) -> int:
        """As `Dataset.length`."""
        return self._held.length(document)

    def expect(self, documents: Sequence[int]) -> None:
        """As `Dataset.expect`: everything is here."""

    def answers(self, plan: StepReads, segments: Segments) -> tuple[Int64Array, BoolArray]:
        """The next byte (b, N), and where it is asked for (b, N)."""
        return segments.target, segments.mask & (self._bytes_since(plan, segments) > 0)

    def distance(self, plan: StepReads, segments: Segments) -> Int64Array:
        """Whole windows since the fact was told that is asked for (b, N)."""
        return self._bytes_since(plan, segments) // self._window

    def _bytes_since(self, plan: StepReads, segments: Segments) -> Int64Array:
        window = segments.input.shape[1] // plan.document.shape[1]
        place = np.minimum(positions(plan, window), np.repeat(self.lengths[plan.document] - 1, window, 1))
        return self._since[np.repeat(self._first[plan.document], window, 1) + place]
