"""The encoder of an encoder-decoder, and the cross-attention of its decoder; shortening after arXiv 2305.15099."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveFloat

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.section import Section

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig

_EXACT = 1e-9  # 0.1 * 30 is more than 3


def share_of(tokens: int, share: float) -> int:
    """A share of some tokens as a number of tokens, rounded up."""
    return math.ceil(share * tokens - _EXACT)


class EncoderConfig(Section):
    """The first layers of the model as an encoder, for `model.objective: denoise`; the others are the decoder.

    Before each layer in `shortened` the encoder reduces its number of tokens: it keeps the lowest frequencies of a
    cosine transform along the segment, and transforms them back.
    """

    layers: NonNegativeInt = Field(
        0, description="how many of the first layers form the encoder, to which the others attend; 0: no encoder"
    )
    shortened: tuple[NonNegativeInt, ...] = Field(
        (), description="layers of the encoder before which it reduces its number of tokens"
    )
    keep: PositiveFloat = Field(0.5, le=1.0, description="share of the tokens that each reduction keeps [p]")

    def length(self, window: int, layer: int) -> int:
        """How many of the `window` tokens of a block layer `layer` reads; a layer of the decoder reads all."""
        if layer >= self.layers:
            return window
        for index in self.shortened:
            if index <= layer:
                window = share_of(window, self.keep)
        return window

    def crosses(self, layer: int) -> bool:
        """Whether a layer attends to the encoder."""
        return 0 < self.layers <= layer

    def cross_parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        """The weights of a layer's cross-attention."""
        attended = model.heads * model.head_dim
        yield Matrix(model.width)
        yield Matrix(model.width)
        yield Matrix(attended, model.width, True)
        yield Matrix(2 * attended, model.width, True, 2)
        yield Matrix(model.heads, split=True)
        yield Matrix(model.width, attended, True)

    def cross_flops(self, model: "ModelConfig") -> float:
        """FLOPs of a layer's cross-attention for each token of the decoder."""
        attended, left = model.heads * model.head_dim, self.length(model.window, self.layers - 1)
        projected = 2.0 * model.width * attended * (2 + 2 * left / model.window)  # queries and output; keys and values
        return projected + 4 * left * attended

    def left(self, model: "ModelConfig", local: LocalSegment) -> LocalSegment:
        """A micro-batch's tokens at the end of the encoder; `local` is those of the decoder."""
        return replace(local, segment=self.length(model.window, self.layers - 1))

    def shortening_activations(self, model: "ModelConfig", local: LocalSegment, layer: int) -> int:
        """Bytes that the shortening before a layer keeps for its backward pass; `local` is what the layer reads.

        They are the float32 coefficients of all tokens, and the complex coefficients of those that remain.
        """
        before = self.length(model.window, layer - 1) if layer else model.window
        return local.streams * model.width * (4 * before + 8 * local.segment)

    def cross_activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Bytes that a layer's cross-attention keeps for its backward pass; each layer counts its source."""
        heads, width = model.heads // local.tensor, model.width
        source = self.left(model, local)
        # queries, scaled queries and what was read; keys, values and unit keys
        vectors = 3 * (local.tokens + source.tokens) * heads * model.head_dim * local.itemsize
        scales = 4 * (local.tokens + source.tokens) * heads
        return local.normed(width, model.dropout) + source.normed(width) + vectors + scales
