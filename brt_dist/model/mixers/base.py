"""The interface of mixers: the half of a layer that mixes tokens and may carry memory of a stream.

The module that `build` makes is pure, `mixer(x, memory, starts, dropout, fed_back) -> (y, memory)`:

* x: (N, b, D) hidden states of one segment, N a multiple of the window W; under sequence parallel this rank's tokens
  (N/tp, b, D).  y has the same shape and is added to x.
* memory: by name of a field (b, *shape of this rank's part); what the same layer returned for the segment before.
* starts: (b, N/W) bool, blocks that begin a document.  Memory knows nothing about documents: where one starts, the
  mixer itself sets what a field declares as its `start`.
* dropout: keyed masks, None outside training.
* fed_back: with `model.feedback` what :meth:`MixerModule.enter` of the layer that feeds back returned, else None.

The memory that is returned keeps its gradient: two calls, one after the other, are one call on all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from brt_dist.config.halves import Half
from brt_dist.config.local_segment import LocalSegment

if TYPE_CHECKING:
    from torch import nn

    from brt_dist.config.schema import ModelConfig
    from brt_dist.model.decoding import BlockDecoder


@dataclass(frozen=True)
class MemoryField:
    """Something that a mixer carries of each stream from segment to segment.

    Attributes:
        name: key of the memory, and last part of the tensor's name in checkpoints.
        shape: of one stream, whole.
        dtype: "model" (the type of the weights), or "float32" (at least that).
        split: dimension of `shape` that the tensor parallel ranks share in equal contiguous parts, None if every rank
            holds all of it.
        is_split_by_sequence: `split` holds under sequence parallel only.
        start: what enters the first block of a document: "zeros", or the name of a parameter of the mixer with this
            shape.
        is_cache: it holds the last tokens as they were read (keys, values), not a state made from all tokens so far.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["model", "float32"] = "model"
    split: int | None = None
    is_split_by_sequence: bool = False
    start: str = "zeros"
    is_cache: bool = False

    def split_dim(self, sequence_parallel: bool) -> int | None:
        """The dimension of `shape` that is split, None if it is whole on every rank."""
        return None if self.is_split_by_sequence and not sequence_parallel else self.split

    def local_shape(self, tensor: int, sequence_parallel: bool) -> tuple[int, ...]:
        """Shape of one stream on one of `tensor` tensor parallel ranks."""
        dim = self.split_dim(sequence_parallel)
        return tuple(size // tensor if i == dim else size for i, size in enumerate(self.shape))

    def local_bytes(self, tensor: int, sequence_parallel: bool, model_itemsize: int) -> int:
        """Bytes of one stream on one rank, weights having `model_itemsize` bytes an element."""
        itemsize = model_itemsize if self.dtype == "model" else max(model_itemsize, 4)
        return prod(self.local_shape(tensor, sequence_parallel)) * itemsize


@dataclass(frozen=True)
class Statistic:
    """A number that a mixer reports about its memory or weights, over all streams and ranks.

    Attributes:
        label: what it is: the title of its chart.
        axis: what its values are.
        reduce: how values are combined: their mean, their root mean square, or the largest by size.
    """

    label: str
    axis: str
    reduce: Literal["mean", "rms", "max"]


STATE_RMS = Statistic("Size of the states", "root mean square", "rms")
STATE_MAX = Statistic("Largest entry of the states", "size", "max")
STATE_RANK = Statistic("Effective rank of the states", "directions", "mean")


class Mixer(Half):
    """A kind of mixer."""

    is_causal: ClassVar[bool] = True
    """whether an output depends on no later token; the training objective needs it"""
    reads_ahead: ClassVar[str] = ""
    """why a mixer is not causal, as the end of a sentence"""
    statistics: ClassVar[dict[str, Statistic]] = {}
    """what the module's `statistics` returns, by name"""
    watched: ClassVar[dict[str, Statistic]] = {}
    """what the module's `watch` reports about every forward pass, by name"""

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        """What the layer carries of a stream; nothing in a mixer without memory."""
        return ()

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        """Reads a block token by token with the module that `build` made; this default works for any causal mixer."""
        from brt_dist.model.decoding import Rereading

        return Rereading(module, model.window)

    def between_blocks(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Bytes that recompute keeps besides the input: with `model.feedback`, what passes between blocks."""
        return 0

    def states_fed_back(self) -> int:
        """State vectors that all layers can attend to (`model.feedback`); 0 in a mixer that cannot feed back."""
        return 0
