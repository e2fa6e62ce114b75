"""Dropout whose masks depend only on the run, the step, the layer and the stream.

The same masks come out in every layout, after a resume, and when a forward runs twice (recompute); torch's global
generator is not touched.  As in the paper's code the mask of the residual stream is one tile of 128 tokens, repeated
along the segment, and that of the attention matrix is one block, shared by all blocks: drawing costs little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from brt_dist.model.norms import widened
from brt_dist.model.parameters import seeded_generator
from brt_dist.model.routing import Routing

TILE = 128

MaskVersion: TypeAlias = Literal[1, 2]
"""How attention masks are drawn; a run keeps the version that it began with.

2: each head separately, so that a rank draws only its own; 1: all heads of a stream together, as version 0.1.0 did.
"""
MASK_VERSION: MaskVersion = 2  # of new runs


@dataclass(frozen=True)
class Mask:
    """Called with a tensor, sets the dropped elements to 0 and multiplies the others by 1/(1 - rate).

    The product is taken in float32: in bf16 the factor itself would be rounded, 1/0.95 to 1.0547, and training would
    see activations that are 0.2 % larger than those of an evaluation.

    Args:
        dropped: bool, broadcast against the tensor.
        rate: probability of being dropped, in [0, 1).
    """

    dropped: Tensor
    rate: float

    def __call__(self, x: Tensor) -> Tensor:
        return (widened(x.masked_fill(self.dropped, 0.0)) * self.factor).to(x.dtype)

    @property
    def factor(self) -> float:
        """1/(1 - rate), rounded to float32."""
        return float(np.float32(1.0) / np.float32(1.0 - self.rate))


def dropped_into(
    into: Callable[[Tensor], Tensor], dropout: "Dropout | None", layer: int, site: str
) -> Callable[[Tensor], Tensor]:
    """A function of x (N, b, D) that applies dropout, then `into`; see `Dropout.activations`."""
    return into if dropout is None else lambda x: into(dropout.activations(x, layer, site))


@dataclass(frozen=True)
class Dropout:
    """Masks of one micro-batch in one training step, and other random draws of layers.  A rate of 0 drops nothing.

    Args:
        rate: probability that an element is dropped, in [0, 1).
        seed: of the run.
        step: number of steps before this one.
        streams: global number of each stream of the micro-batch (b,).
        is_split: whether activations hold this rank's part of the segment (sequence parallel).
        offset: position in the segment of the first token that is given.
        mask_version: how attention masks are drawn.
        routing: what routers of experts chose.
    """

    rate: float
    seed: int
    step: int
    streams: Sequence[int]
    is_split: bool = False
    offset: int = 0
    mask_version: MaskVersion = MASK_VERSION
    routing: Routing = field(default_factory=Routing, compare=False)

    def at(self, offset: int) -> "Dropout":
        """The same masks, for activations that begin at this position of the segment."""
        return replace(self, offset=offset)

    def in_repeat(self, repeat: int, repeats: int) -> "Dropout":
        """Masks of a run of the layers (`model.repeat`), number `repeat` from 0; what routers choose is shared."""
        return replace(self, routing=replace(self.routing, repeats=repeats, repeat=repeat)) if repeats > 1 else self

    def activations(self, x: Tensor, layer: int, site: str) -> Tensor:
        """Drop elements of `x` (N, b, D), the same whichever rank holds them."""
        if self.rate == 0:
            return x
        length, _, width = x.shape
        tile = torch.stack([self._dropped((TILE, width), x.device, layer, site, stream) for stream in self.streams], 1)
        first = self.offset + (length * parallel_state.get_tensor_model_parallel_rank() if self.is_split else 0)
        return Mask(tile[torch.arange(first, first + length, device=x.device) % TILE], self.rate)(x)

    def attention(self, device: torch.device, heads: int, window: int, layer: int) -> Mask | None:
        """Mask of attention probabilities (b, 1, h, W, 2W), for this rank's part of `heads`; none at rate 0."""
        if self.rate == 0:
            return None
        rank = parallel_state.get_tensor_model_parallel_rank()
        local = heads // parallel_state.get_tensor_model_parallel_world_size()
        mine, size = range(rank * local, (rank + 1) * local), (window, 2 * window)
        if self.mask_version == 1:
            drawn = [
                self._dropped((heads, *size), device, layer, "attention", stream)[mine.start : mine.stop]
                for stream in self.streams
            ]
        else:
            drawn = [
                torch.stack([self._dropped(size, device, layer, f"attention/{head}", stream) for head in mine])
                for stream in self.streams
            ]
        return Mask(torch.stack(drawn).unsqueeze(1), self.rate)

    def uniform(self, like: Tensor, layer: int, site: str) -> Tensor:
        """Float32 in [0, 1) for each element of `like` (N, b, F/tp): all tokens, this rank's part of F features.

        Drawn for a tile of 128 tokens and all features, so that it depends neither on the layout nor on the rate.
        """
        group = parallel_state.get_tensor_model_parallel_group()
        shape = (TILE, like.shape[-1] * group.size())
        tile = torch.stack([self._draw(shape, like.device, layer, site, stream) for stream in self.streams], 1)
        first = self.offset + torch.arange(len(like), device=like.device)
        return tile.chunk(group.size(), -1)[group.rank()][first % TILE]

    def uniform_by_stream(self, device: torch.device, layer: int, site: str) -> Tensor:
        """One number in [0, 1) for each stream, float32 (b,)."""
        return torch.cat([self._draw((1,), device, layer, site, stream) for stream in self.streams])

    def _dropped(self, shape: tuple[int, ...], device: torch.device, layer: int, site: str, stream: int) -> Tensor:
        return self._draw(shape, device, layer, site, stream) < self.rate

    def _draw(self, shape: tuple[int, ...], device: torch.device, layer: int, site: str, stream: int) -> Tensor:
        run = f".{self.routing.repeat}" if self.routing.repeat else ""
        key = f"dropout/{self.seed}/{self.step}/{layer}{run}/{site}/{int(stream)}"
        return torch.rand(shape, generator=seeded_generator(key, device), device=device)
