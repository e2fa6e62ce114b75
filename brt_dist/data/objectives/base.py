"""What an objective is: what a model is trained to predict, and from which of the tokens that its streams read.

Random draws are keyed only by the run, the step and the stream, like those of dropout: they are the same in every
layout, after a resume, and in any order.  The number of targets of a step follows from the schedule, so every rank
knows it for the global batch without drawing.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.kinds import OBJECTIVES

if TYPE_CHECKING:
    from brt_dist.config.schema import Config, ModelConfig

Tokens: TypeAlias = npt.NDArray[np.int64]
UNKNOWN = -1
"""a label that nobody knows"""
EVALUATION = "evaluation"
"""label of draws that every evaluation repeats"""


@dataclass(frozen=True)
class Examples:
    """What the model gets from some streams in a step, and what it should answer.

    Attributes:
        input: (b, N) int64, tokens.
        target: (b, N) int64, the right answer at each of them.
        mask: (b, N) bool, where an answer is wanted.
        source: (b, N) int64, what the encoder of an encoder-decoder reads; None for other models.
        labels: (b, N, 2 + slots) int64, what an oracle says about each token, UNKNOWN for padding: bits of the letters
            that may come next, state, stack (see `oracle`); None for other objectives.
    """

    input: Tokens
    target: Tokens
    mask: npt.NDArray[np.bool_]
    source: Tokens | None = None
    labels: Tokens | None = None


class Objective(ABC):
    """An objective of a run.

    Args:
        tokens: of the tokenizer, [0, tokens); tokens that the objective adds follow.
        label: of its draws: the seed of the run, or EVALUATION.
    """

    purpose: ClassVar[str]
    """what a model learns with it, "to ..." """
    added_tokens: ClassVar[int] = 0
    """entries of the vocabulary after those of the tokenizer"""
    continues_text: ClassVar[bool] = False
    """whether a model learns to predict the next token from what precedes it alone"""
    reads_beginnings: ClassVar[bool] = False
    """whether it must see a document from its beginning"""

    def __init__(self, tokens: int, label: int | str) -> None:
        self.tokens, self.label = tokens, label

    @classmethod
    def of(cls, model: "ModelConfig", label: int | str) -> "Objective":
        """The objective of a model, whose `vocab_size` must be set."""
        return cls((model.vocab_size or 0) - cls.added_tokens, label)

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        """A message for each rule that a config with this objective breaks, with the nearest value that works."""
        layers = config.model.encoder.layers
        if layers:
            yield (
                f"model.encoder.layers={layers} with model.objective={config.model.objective}: this objective has no "
                "input for an encoder; nearest: model.encoder.layers=0, or model.objective=denoise"
            )

    @classmethod
    def broken_layout_rules(cls, config: "Config") -> Iterator[str]:
        """The same for rules of the layout."""
        yield from ()

    @abstractmethod
    def count(self, plan: StepReads) -> int:
        """Targets of the whole global batch."""

    @abstractmethod
    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        """What some streams must predict.

        Args:
            number: of the step; it keys the draws.
            plan: of all streams.
            segments: of some streams, as they were read.
        """

    def generator(self, number: int, stream: int) -> np.random.Generator:
        """The random generator of a stream in a step."""
        key = f"mask/{self.label}/{number}/{stream}"
        return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])))


def objective_of(model: "ModelConfig", label: int | str) -> Objective:
    """The objective of a model, whose `vocab_size` must be set; `label` is that of its draws."""
    return OBJECTIVES[model.objective].of(model, label)


def real_tokens(plan: StepReads, segments: Segments) -> npt.NDArray[np.bool_]:
    """(b, N): which tokens of `segments` are tokens of documents; the others pad blocks."""
    length = plan.length[segments.streams]
    window = segments.input.shape[1] // length.shape[1]
    real: npt.NDArray[np.bool_] = np.tile(np.arange(window), length.shape[1]) < np.repeat(length, window, axis=1)
    return real
