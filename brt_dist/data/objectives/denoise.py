"""Restoring text with spans missing, by an encoder and a decoder: BART's text infilling (arXiv 1910.13461).

Of the tokens that a stream reads in a step, 30 % are missing from what the encoder reads, in spans whose lengths are
Poisson distributed with mean 3; each span, also one of length 0, leaves one mask token.  The decoder writes the whole
segment: it predicts each token from those before it and from the encoder.  So it is a language model that also reads
the encoder, and its memory is carried like that of any language model.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brt_dist.data.objectives.base import Examples, Objective, Tokens, real_tokens
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

MISSING, SPAN = 0.3, 3.0


class Denoising(Objective):
    """The next token of each token, where an encoder has read the segment with spans missing.

    Of the two tokens added to the vocabulary, the first is the mask and the second pads the encoder's input.
    """

    purpose: ClassVar[str] = "to restore text with spans missing"
    added_tokens: ClassVar[int] = 2

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        model, encoder = config.model, config.model.encoder
        if not 0 < encoder.layers < model.layers:
            yield (
                f"model.encoder.layers={encoder.layers} of model.layers={model.layers} with model.objective=denoise: "
                "both encoder and decoder need a layer; "
                f"nearest: model.encoder.layers={max(min(encoder.layers, model.layers - 1), 1)}"
                + (", and model.layers=2" if model.layers == 1 else "")
            )
            return
        outside = [layer for layer in encoder.shortened if layer >= encoder.layers]
        if outside or list(encoder.shortened) != sorted(set(encoder.shortened)):
            nearest = sorted({min(layer, encoder.layers - 1) for layer in encoder.shortened})
            yield (
                f"model.encoder.shortened={list(encoder.shortened)}: must list layers of the encoder, 0 to "
                f"{encoder.layers - 1}, each once and in order; nearest: {nearest}"
            )
        if config.data.segment != model.window:
            yield (
                f"data.segment={config.data.segment} with model.window={model.window} and model.objective=denoise: the "
                "encoder reads a segment as one block, so that it is of one document; "
                f"nearest: model.window={config.data.segment}"
            )
        yield from cls._wrong_mixers(config)
        if model.feedback:
            yield (
                "model.feedback=true with model.objective=denoise: the layers would run block by block, and the "
                "encoder reads the whole segment before the decoder begins; nearest: model.feedback=false"
            )
        if model.repeat > 1:
            yield (
                f"model.repeat={model.repeat} with model.objective=denoise: the encoder's layers would run on what "
                "the decoder wrote; nearest: model.repeat=1"
            )

    @classmethod
    def _wrong_mixers(cls, config: "Config") -> Iterator[str]:
        from brt_dist.config.halves import assigned, listed

        model, first = config.model, config.model.encoder.layers
        for name, mixer in model.mixers.items():
            used = [layer for layer, other in enumerate(assigned(model.mixers, model.layers)) if other == name]
            encoding, decoding = [i for i in used if i < first], [i for i in used if i >= first]
            if mixer.is_causal and encoding:
                yield (
                    f"model.mixers.{name}: kind {mixer.kind} in layers {listed(encoding)} of the encoder, which reads "
                    "in both directions and carries no memory; "
                    f"nearest: model.mixers={{bidirectional: {{layers: {list(range(first))}}}, ...}}"
                )
            if decoding and not mixer.is_causal:
                yield (
                    f"model.mixers.{name}: kind {mixer.kind} in layers {listed(decoding)} of the decoder is not "
                    f"causal, because {mixer.reads_ahead}; a decoder must not know what it predicts; "
                    f"nearest: model.mixers.{name}.layers={list(range(first))}, and kind window for the others"
                )

    @classmethod
    def broken_layout_rules(cls, config: "Config") -> Iterator[str]:
        layout = config.parallel
        if layout.pipeline > 1:
            yield (
                f"parallel.pipeline={layout.pipeline} with model.objective=denoise: every stage of the decoder would "
                "need what the last layer of the encoder left, and stages exchange only the hidden states of one "
                "segment, all of one length; nearest: parallel.pipeline=1"
            )
        if layout.sequence_parallel:
            yield (
                "parallel.sequence_parallel=true with model.objective=denoise: the encoder's cosine transform and the "
                "decoder's cross-attention need all tokens of the segment on every rank; "
                "nearest: parallel.sequence_parallel=false"
            )

    def count(self, plan: StepReads) -> int:
        return plan.loss_tokens

    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        real = real_tokens(plan, segments)
        source = np.full_like(segments.input, self.tokens + 1)
        for row, stream in enumerate(segments.streams.tolist()):
            left = infilled(segments.input[row, real[row]], self.tokens, self.generator(number, stream))
            source[row, : left.size] = left
        return Examples(segments.input, segments.target, segments.mask, source)


def infilled(tokens: Tokens, mask: int, draw: np.random.Generator) -> Tokens:
    """`tokens` (n,) with spans replaced by `mask`, one for each span; at most as many tokens."""
    missing = missing_of(tokens.size)
    if not missing:
        return tokens
    ends = np.minimum(np.cumsum(draw.poisson(SPAN, missing)), missing)  # of spans, concatenated
    ends = ends[: int(np.searchsorted(ends, missing)) + 1]
    ends[-1] = missing
    lengths, kept = np.diff(ends, prepend=0), tokens.size - missing
    # each span goes before another of the kept tokens, or behind the last
    gaps = np.sort(draw.permutation(kept + 1)[: ends.size])
    begins = gaps + ends - lengths  # tokens before a span: kept ones, and those of earlier spans
    is_missing = np.zeros(tokens.size, np.bool_)
    for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
        is_missing[begin : begin + length] = True
    return np.insert(tokens[~is_missing], gaps, mask)


def missing_of(tokens: int) -> int:
    """How many of the tokens are missing: 30 %, rounded, and at least one if there are any."""
    return max(int(MISSING * tokens + 0.5), 1) if tokens else 0
