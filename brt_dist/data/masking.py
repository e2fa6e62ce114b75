"""Masked tokens, as BERT masks them (arXiv 1810.04805): what is hidden of a segment, and is to be found again.

Of the tokens that a stream reads in a step, 15 % are chosen; of those 80 % become the mask token, 10 % a random token,
and 10 % stay.  Draws are keyed by the run, the step and the stream alone, as those of dropout are: they are the same
in every layout, after a resume, and in any order.  How many are chosen follows from the schedule, so that every rank
knows it for the global batch without drawing for it.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads

RATE, MASKED, RANDOM = 0.15, 0.8, 0.1
EVALUATION = "evaluation"  # the label of draws that every evaluation repeats


@dataclass(frozen=True)
class TokenMasking:
    """Hides tokens of segments.

    Args:
        tokens: of the tokenizer, [0, tokens); the mask token is number `tokens`.
        label: of the draws: the seed of the run, or EVALUATION.
    """

    tokens: int
    label: int | str

    def count(self, plan: StepReads) -> int:
        """Tokens that are chosen in the whole global batch."""
        return int(chosen_of(plan.length.sum(1)).sum())

    def hide(self, number: int, plan: StepReads, segments: Segments) -> Segments:
        """`segments` with tokens hidden: `target` is what was read, `mask` says which tokens were chosen.

        Args:
            number: of the step; it keys the draws.
            plan: of all streams.
            segments: of some streams, as they were read.
        """
        length = plan.length[segments.streams]
        window = segments.input.shape[1] // length.shape[1]
        real = np.tile(np.arange(window), length.shape[1]) < np.repeat(length, window, axis=1)
        hidden, chosen = segments.input.copy(), np.zeros(segments.input.shape, np.bool_)
        for row, stream in enumerate(segments.streams.tolist()):
            draw = generator(f"mask/{self.label}/{number}/{stream}")
            places = np.flatnonzero(real[row])
            places = draw.permutation(places)[: chosen_of(np.array([places.size]))[0]]
            fate, other = draw.random(places.size), draw.integers(self.tokens, size=places.size)
            kept = np.where(fate < MASKED + RANDOM, other, segments.input[row, places])
            hidden[row, places] = np.where(fate < MASKED, self.tokens, kept)
            chosen[row, places] = True
        return replace(segments, input=hidden, target=segments.input, mask=chosen)


def chosen_of(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of a stream's tokens (b,) are chosen: 15 %, rounded, and at least one of any."""
    return np.where(tokens > 0, np.maximum((RATE * tokens + 0.5).astype(np.int64), 1), 0)


def generator(key: str) -> np.random.Generator:
    """A random generator that depends on `key` only."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])))
