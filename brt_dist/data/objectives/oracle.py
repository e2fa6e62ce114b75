"""Words of a bounded context-free language, with an oracle's account of its machine at each symbol (arXiv 2112.09174).

A document is a word, and a token is the byte of a symbol, as `brt data corpus cfg` and `--tokenizer bytes` make them.
The labels of a token depend only on the document up to it, so they are the same in every layout and after a resume.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brt_dist.config.oracle import OracleConfig
from brt_dist.data.objectives.base import UNKNOWN, Examples, Tokens
from brt_dist.data.objectives.causal import NextToken
from brt_dist.data.reader import Segments, runs
from brt_dist.data.stream_schedule import StepReads
from brt_dist.errors import DataError
from brt_dist.languages import FIRST, Configuration

if TYPE_CHECKING:
    from brt_dist.config.schema import Config, ModelConfig


class Oracle(NextToken):
    """The next symbol of a word; heads also predict the state and the stack of the machine that reads the word."""

    purpose: ClassVar[str] = "to predict the next symbol, and a machine's state and stack"
    reads_beginnings: ClassVar[bool] = True

    def __init__(self, tokens: int, label: int | str, settings: OracleConfig) -> None:
        super().__init__(tokens, label)
        self.settings, self.machine = settings, settings.machine()
        self._symbols = {ord(letter): FIRST + number for number, letter in enumerate(self.machine.letters)}
        self._after = lru_cache(1 << 14)(self._move)
        self._labels = lru_cache(1 << 14)(self._label)

    @classmethod
    def of(cls, model: "ModelConfig", label: int | str) -> "Oracle":
        return cls(model.vocab_size or 0, label, model.oracle)

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        yield from super().broken_rules(config)
        model, oracle = config.model, config.model.oracle
        if not oracle.networks(model.width)[1]:
            yield (
                f"model.oracle.slots={oracle.slots} with model.width={model.width} and "
                "model.oracle.decomposition=forced: state and slots need at least one channel each; "
                f"nearest: model.oracle.slots={model.width - 1}, or model.oracle.decomposition=latent"
            )

    @classmethod
    def broken_layout_rules(cls, config: "Config") -> Iterator[str]:
        if config.parallel.sequence_parallel:
            yield (
                "parallel.sequence_parallel=true with model.objective=oracle: the heads need all tokens of the segment "
                "on every rank; nearest: parallel.sequence_parallel=false"
            )

    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        shape = *segments.input.shape, 2 + self.settings.slots
        labels, window = np.full(shape, UNKNOWN), shape[1] // plan.length.shape[1]
        for row, stream in enumerate(segments.streams.tolist()):
            for run, before in zip(runs(segments.starts[row]), segments.beginnings[row], strict=True):
                begin, count = run.start * window, int(plan.length[stream, run.start : run.stop].sum())
                labels[row, begin : begin + count] = self.labels(before, segments.input[row, begin : begin + count])
        return Examples(segments.input, segments.target, segments.mask, labels=labels)

    def labels(self, before: Tokens, tokens: Tokens) -> Tokens:
        """Labels (n, 2 + slots) of `tokens` (n,), which follow `before` in their document.

        The first column has a bit for each letter of the language, set if it may come next.  Then come the machine's
        state, and its stack from the bottom, 0 where a slot is empty.

        Raises:
            DataError: they are not the beginning of a word.
        """
        at = Configuration()
        for token in before.tolist():
            at = self._after(at, token)
        found = np.empty((len(tokens), 2 + self.settings.slots), np.int64)
        for place, token in enumerate(tokens.tolist()):
            at = self._after(at, token)
            found[place] = self._labels(at)
        return found

    def letters(self) -> Tokens:
        """(V,) the bit of each token that is a letter; 0 for all others."""
        found = np.zeros(self.tokens, np.int64)
        for token, symbol in self._symbols.items():
            found[token] = 1 << (symbol - FIRST)
        return found

    def _move(self, at: Configuration, token: int) -> Configuration:
        symbol = self._symbols.get(token)
        after = None if symbol is None else dict(self.machine.moves(at)).get(symbol)
        if after is None:
            raise DataError(
                f"model.oracle.language={self.settings.language}: a document is not a word of it; byte {token} cannot "
                f"follow state {at.state} with a stack of {len(at.stack)}. Give the language, types and depth of "
                "`brt data corpus cfg`, and build the dataset with --tokenizer bytes"
            )
        return after

    def _label(self, at: Configuration) -> list[int]:
        legal = sum(1 << (symbol - FIRST) for symbol, _ in self.machine.moves(at))
        slots = self.settings.slots
        return [legal, at.state, *(*at.stack, *[0] * slots)[:slots]]
