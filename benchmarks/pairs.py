"""Two tasks about pairs of a key and a value, written into a document and asked for later.

* Multi-query recall (after MQAR, arXiv 2312.04927): the first windows hold PAIRS pairs with keys of their own; then
  each window asks for one of them.  The carried memory must hold all pairs at once.
* Last write wins: each window writes a new value for one of FEW keys, and asks for a key, whose answer is its newest
  value.  The carried memory must be overwritten, not only added to.

The answer is never in the input.  Documents are longer than a segment and start anywhere in one.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from benchmarks.questions import BoolArray, Drawn, Int64Array, positions
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads

Task = Literal["multi-query", "last write"]
KEYS, VALUES = 16, 8
PAIRS, FEW = 8, 4  # pairs of multi-query recall; keys of last write wins
ASK, NOISE = KEYS + VALUES, KEYS + VALUES + 1
VOCAB = NOISE + 1
WINDOW = 4  # tokens: two pairs, or a pair and a question


class Pairs(Drawn):
    """`count` documents of a task, drawn from `seed`.

    Args:
        windows: shortest and longest document.
    """

    def __init__(self, task: Task, windows: tuple[int, int], count: int, seed: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        shortest, longest = windows
        self.lengths = random.integers(shortest, longest + 1, count) * WINDOW
        distinct = PAIRS if task == "multi-query" else FEW
        keys = random.permuted(np.tile(np.arange(KEYS if task == "multi-query" else FEW), (count, 1)), axis=1)
        keys = keys[:, :distinct]
        values = random.integers(KEYS, KEYS + VALUES, (count, distinct))
        shown = distinct * 2 // WINDOW  # windows
        later = (count, longest - shown)
        which = random.integers(distinct, size=later)  # is asked for in each of the later windows
        rows = np.arange(count)[:, None]
        tokens = np.full((*later, WINDOW), NOISE)
        if task == "multi-query":
            at = random.integers(WINDOW - 1, size=later)
            newest, written_in = values[rows, which], which * 2 // WINDOW
        else:
            written, at = random.integers(distinct, size=later), np.full(later, 2)
            new = random.integers(KEYS, KEYS + VALUES, later)
            newest, held = np.empty_like(new), values.copy()
            written_in, last = np.empty_like(new), np.tile(np.arange(distinct) * 2 // WINDOW, (count, 1))
            for window in range(later[1]):
                held[rows[:, 0], written[:, window]] = new[:, window]
                last[rows[:, 0], written[:, window]] = shown + window
                newest[:, window] = held[rows[:, 0], which[:, window]]
                written_in[:, window] = last[rows[:, 0], which[:, window]]
            tokens[..., 0], tokens[..., 1] = keys[rows, written], new
        np.put_along_axis(tokens, at[..., None], ASK, 2)
        np.put_along_axis(tokens, at[..., None] + 1, keys[rows, which][..., None], 2)
        answer, is_asked = np.zeros_like(tokens), np.zeros(tokens.shape, np.bool_)
        np.put_along_axis(answer, at[..., None] + 1, newest[..., None], 2)
        np.put_along_axis(is_asked, at[..., None] + 1, True, 2)
        first = np.stack([keys, values], 2).reshape(count, -1)
        self._tokens = np.concatenate([first, tokens.reshape(count, -1)], 1)
        self._answer: Int64Array = np.concatenate([np.zeros_like(first), answer.reshape(count, -1)], 1)
        self._since: Int64Array = shown + np.arange(later[1]) - written_in  # windows, of the question of each later one
        self._shown = shown
        self._is_asked: BoolArray = np.concatenate([np.zeros(first.shape, bool), is_asked.reshape(count, -1)], 1)

    def answers(self, plan: StepReads, segments: Segments) -> tuple[Int64Array, BoolArray]:
        """Answer (b, N), at the key that is asked for, and where one is asked for (b, N)."""
        window = segments.input.shape[1] // plan.document.shape[1]
        place = np.repeat(plan.document, window, 1), np.minimum(positions(plan, window), self._tokens.shape[1] - 1)
        inside = np.tile(np.arange(window), plan.length.shape[1]) < np.repeat(plan.length, window, 1)
        return self._answer[place], self._is_asked[place] & inside

    def distance(self, plan: StepReads, segments: Segments) -> Int64Array:
        """Windows since the pair was written that is asked for (b, N)."""
        window = segments.input.shape[1] // plan.document.shape[1]
        later = np.clip(positions(plan, window) // WINDOW - self._shown, 0, self._since.shape[1] - 1)
        return self._since[np.repeat(plan.document, window, 1), later]
