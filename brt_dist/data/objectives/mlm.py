"""Masked tokens, as BERT masks them (arXiv 1810.04805): some tokens of a segment are hidden and must be restored.

Of the tokens that a stream reads in a step, 15 % are chosen; of those, 80 % become the mask token, 10 % a random token,
and 10 % stay.  The mask token is added to the vocabulary.
"""

from typing import ClassVar

import numpy as np

from brt_dist.data.objectives.base import Examples, Objective, Tokens, real_tokens
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads

RATE, MASKED, RANDOM = 0.15, 0.8, 0.1


class MaskedTokens(Objective):
    """Restores hidden tokens; all tokens of a segment may be read to do so."""

    purpose: ClassVar[str] = "to find masked tokens again"
    added_tokens: ClassVar[int] = 1

    def count(self, plan: StepReads) -> int:
        return int(chosen_of(plan.length.sum(1)).sum())

    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        real = real_tokens(plan, segments)
        hidden, chosen = segments.input.copy(), np.zeros(segments.input.shape, np.bool_)
        for row, stream in enumerate(segments.streams.tolist()):
            draw = self.generator(number, stream)
            places = np.flatnonzero(real[row])
            places = draw.permutation(places)[: chosen_of(np.array([places.size]))[0]]
            fate, other = draw.random(places.size), draw.integers(self.tokens, size=places.size)
            kept = np.where(fate < MASKED + RANDOM, other, segments.input[row, places])
            hidden[row, places] = np.where(fate < MASKED, self.tokens, kept)
            chosen[row, places] = True
        return Examples(hidden, segments.input, chosen)


def chosen_of(tokens: Tokens) -> Tokens:
    """How many of a stream's tokens (b,) are chosen: 15 %, rounded, and at least one if there are any."""
    return np.where(tokens > 0, np.maximum((RATE * tokens + 0.5).astype(np.int64), 1), 0)
