"""The copy task of linear attention's paper (arXiv 2006.16236, section 4.1): a sequence, a mark, the sequence again.

The model predicts each symbol of the second half, and nothing else is scored.  Symbols of a sequence are distinct, so
the one to predict is the one that followed the current one in the first half: a look-up, which needs no positions.
(The paper's symbols repeat, and its models add positions to tokens; a language model that reads documents of any length
has none to add.)

Two layers of windows see eight tokens back.  In sequences of more than eight symbols the answer is never there, so such
a model can only rule out the symbols that are: 0.13 of its guesses are right.  A model that remembers which symbols
were in the first half, but not their order, rules out all others: (1 + 1/2 + ... + 1/12) / 12 = 0.26.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.questions import BoolArray, Drawn, Int64Array, positions
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads

SYMBOLS = 16
MARK = SYMBOLS  # stands before each half
VOCAB = SYMBOLS + 1
WINDOW = 4
TRAINED, ASKED = (2, 12), (12, 12)  # symbols: short sequences, which any model learns, lead to the long ones
SHORTEST = 2  # windows, at least, of a document that is trained on


class Copies(Drawn):
    """`count` documents, drawn from `seed`.

    Args:
        symbols: of the shortest and of the longest sequence, at most SYMBOLS.
    """

    def __init__(self, symbols: tuple[int, int], count: int, seed: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        shortest, longest = symbols
        self.symbols: Int64Array = random.integers(shortest, longest + 1, count)
        self.lengths = 2 * self.symbols + 2
        sequences = random.permuted(np.tile(np.arange(SYMBOLS), (count, 1)), axis=1)[:, :longest]
        half = np.concatenate([np.full((count, 1), MARK), sequences], 1)
        self._tokens = np.zeros((count, 2 * longest + 2), np.int64)
        for document, length in enumerate(self.symbols.tolist()):
            self._tokens[document, : 2 * length + 2] = np.tile(half[document, : length + 1], 2)

    def answers(self, plan: StepReads, segments: Segments) -> tuple[Int64Array, BoolArray]:
        """The next symbol (b, N), and where it is asked for: in the second half, from its mark on (b, N)."""
        window = segments.input.shape[1] // plan.document.shape[1]
        at, symbols = positions(plan, window), np.repeat(self.symbols[plan.document], window, 1)
        return segments.target, segments.mask & (at > symbols)

    def distance(self, plan: StepReads, segments: Segments) -> Int64Array:
        """Windows since the first half had the symbol that is asked for (b, N)."""
        window = segments.input.shape[1] // plan.document.shape[1]
        return np.repeat(self.symbols[plan.document], window, 1) // WINDOW
