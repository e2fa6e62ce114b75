"""Dropout whose masks depend on the run, the step, the layer and the stream, and on nothing else.

The same masks come out in every layout, after a resume, and when a forward runs twice (recompute); torch's global
generator is not touched.  As in the paper's code the mask of the residual stream is one tile of 128 tokens, repeated
along the segment, and that of the attention matrix is one block, shared by all blocks: drawing costs little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core import parallel_state
from torch import Tensor

from brt_dist.model.parameters import seeded_generator

TILE = 128


@dataclass(frozen=True)
class Dropout:
    """Masks of one micro-batch in one training step, and the other draws that layers make.  A rate of 0 drops nothing.

    Args:
        rate: probability that an element is dropped, in [0, 1).
        seed: of the run.
        step: number of steps before this one.
        streams: global number of each stream of the micro-batch (b,).
        is_split: whether activations hold this rank's part of the segment (sequence parallel).
        offset: position in the segment of the first token that is given.
    """

    rate: float
    seed: int
    step: int
    streams: Sequence[int]
    is_split: bool = False
    offset: int = 0

    def at(self, offset: int) -> "Dropout":
        """The same masks, for activations that begin at this position of the segment."""
        return replace(self, offset=offset)

    def activations(self, x: Tensor, layer: int, site: str) -> Tensor:
        """Drop elements of `x` (N, b, D), the same whichever rank holds them."""
        if self.rate == 0:
            return x
        length, _, width = x.shape
        tile = torch.stack([self._factors((TILE, width), x, layer, site, stream) for stream in self.streams], 1)
        first = self.offset + (length * parallel_state.get_tensor_model_parallel_rank() if self.is_split else 0)
        return x * tile[torch.arange(first, first + length, device=x.device) % TILE]

    def attention(self, like: Tensor, heads: int, window: int, layer: int) -> Tensor | None:
        """Factors on attention probabilities (b, 1, h, W, 2W) for this rank's part of `heads`; none at rate 0.

        Drawn for all heads, so that the masks don't depend on how the heads are split.
        """
        if self.rate == 0:
            return None
        rank = parallel_state.get_tensor_model_parallel_rank()
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        shape = (heads, window, 2 * window)
        drawn = [self._factors(shape, like, layer, "attention", stream).chunk(ranks)[rank] for stream in self.streams]
        return torch.stack(drawn).unsqueeze(1)

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

    def _factors(self, shape: tuple[int, ...], like: Tensor, layer: int, site: str, stream: int) -> Tensor:
        kept = self._draw(shape, like.device, layer, site, stream) >= self.rate
        return kept.to(like.dtype) / (1 - self.rate)

    def _draw(self, shape: tuple[int, ...], device: torch.device, layer: int, site: str, stream: int) -> Tensor:
        key = f"dropout/{self.seed}/{self.step}/{layer}/{site}/{int(stream)}"
        return torch.rand(shape, generator=seeded_generator(key, device), device=device)
