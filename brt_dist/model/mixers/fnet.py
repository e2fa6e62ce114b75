"""The mixing of FNet (arXiv 2105.03824): y = Re(F_T F_D norm(x)) / sqrt(T D), of a segment of T tokens.

The paper does not scale the transform down; the norm after each layer's residual sum removes its size.  Our norms come
first, so without scaling the transform, sqrt(T D) times as large as its input, would dominate the residual stream.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import Mixer

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import Tensor, nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.dropout import Dropout
    from brt_dist.model.memory import Memory


class FNetMixer(Mixer):
    """A Fourier transform over tokens and channels, for encoders."""

    kind: Literal["fnet"] = Field("fnet", description="Fourier transform of the segment, for encoders: not causal")

    is_causal: ClassVar[bool] = False
    reads_ahead: ClassVar[str] = "its Fourier transform mixes each token with all later tokens of the segment"

    def broken_rules(self, config: "Config", key: str) -> Iterator[str]:
        if config.parallel.sequence_parallel:
            yield (
                f"{key}: kind fnet with parallel.sequence_parallel=true: its transform needs all tokens of the segment "
                "on every rank; nearest: parallel.sequence_parallel=false"
            )
        if config.model.feedback:
            yield (
                f"{key}: kind fnet with model.feedback=true: the layers then run on one block at a time, and its "
                "transform is one of the segment; nearest: model.feedback=false"
            )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield Matrix(model.width)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 0.0  # not a matrix product

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        return local.hidden(model.width) + 4 * local.own_tokens * (1 + model.width)  # transforms are in float32

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # two complex transforms of the gradient
        return local.hidden(model.width) + 2 * 8 * local.own_tokens * model.width

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 65

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn

        from brt_dist.model.norms import RMSNorm
        from brt_dist.model.transforms import fourier_mixed

        class FourierMixing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)

            def forward(
                self, x: "Tensor", memory: "Memory", starts: "Tensor", dropout: "Dropout | None", fed_back: None = None
            ) -> "tuple[Tensor, Memory]":
                mixed = fourier_mixed(self.norm(x).transpose(0, 1)).transpose(0, 1)
                return mixed / math.sqrt(len(x) * model.width), {}

        return FourierMixing()
