"""Attention in both directions, for encoders (as in BERT, arXiv 1810.04805): tokens of a block attend to each other.

For each head softmax(q k^T / sqrt(E)) v, with rotary positions (arXiv 2104.09864) where BERT learns absolute ones.  A
block belongs to one document, so documents never mix.  With `model.window` = `data.segment` a token sees its segment.
"""

from collections.abc import Iterator, Mapping
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


class BidirectionalMixer(Mixer):
    """Attention to all tokens of the block, for encoders."""

    kind: Literal["bidirectional"] = Field(
        "bidirectional", description="attention to all tokens of the block, for encoders: not causal"
    )

    is_causal: ClassVar[bool] = False
    reads_ahead: ClassVar[str] = "its tokens attend to later tokens of their block"

    def broken_rules(self, config: "Config", key: str) -> Iterator[str]:
        size = config.model.head_dim
        if size % 2:
            yield (
                f"{key}: kind bidirectional with model.head_dim={size}: pairs of channels are rotated, so their number "
                f"must be even; nearest: model.head_dim={size + 1}"
            )
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: bidirectional attends to no state of another layer; "
                "nearest: model.feedback=false"
            )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        attended = model.heads * model.head_dim
        yield Matrix(model.width)
        yield Matrix(3 * attended, model.width, True, 3)
        yield Matrix(model.width, attended, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        projected = 8.0 * model.width * model.heads * model.head_dim
        return projected + self.attention_flops(model, executed)

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        return 4.0 * model.window * model.heads * model.head_dim

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads = model.heads // local.tensor
        vectors = local.tokens * heads * model.head_dim * local.itemsize
        # projections, queries and keys after the rotation, what was read and one number for each query
        kept = 6 * vectors + 4 * local.tokens * heads
        return kept + local.normed(model.width) + local.mask(model.width, model.dropout)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads = model.heads // local.tensor
        gradients = 4 * local.tokens * heads * model.head_dim * local.itemsize
        attended = max(local.softmax(local.tokens * heads * model.window), gradients)
        return local.hidden(model.width) + max(attended, 2 * local.gathered(model.width))

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 150

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn

        from brt_dist.model.attention import merge_heads, split_heads
        from brt_dist.model.kernels.base import kernel
        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import RMSNorm
        from brt_dist.model.positions import rotated

        attended = model.heads * model.head_dim

        class BidirectionalAttention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)
                self.projections = ColumnLinear(model.width, 3 * attended, parallel, stacked=(3, model.head_dim))
                self.output = RowLinear(attended, model.width, parallel)

            def forward(
                self, x: "Tensor", memory: "Memory", starts: "Tensor", dropout: "Dropout | None", fed_back: None = None
            ) -> "tuple[Tensor, Memory]":
                x = self.norm(x)
                if dropout is not None:
                    x = dropout.activations(x, index, "attention input")
                blocks = self.projections(x).unflatten(0, (-1, model.window))
                queries, keys, values = split_heads(blocks, 3, model.head_dim)
                asked = rotated(queries * model.head_dim**-0.5)
                read = kernel(model.attention_kernel, x.device).everywhere(asked, rotated(keys), values)
                return self.output(merge_heads([read]).flatten(0, 1)), {}

        return BidirectionalAttention()
