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
from brt_dist.model.shapes import logits_at_once

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
        # projections, what was read and one number for each query; queries and keys after the rotation
        kept = 4 * vectors + 4 * local.tokens * heads + local.made(2 * vectors)
        return kept + local.normed(model.width, model.dropout)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads = model.heads // local.tensor
        vectors = local.tokens * heads * model.head_dim * local.itemsize
        logits = logits_at_once(local.kernel, local.tokens * heads * model.window, heads * model.window**2)
        attended = 4 * vectors + local.made_again(2 * vectors) + local.softmax(logits)
        return local.hidden(model.width) + max(attended, 2 * local.gathered(model.width))

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 150

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn

        from brt_dist.model.attention import merge_heads, split_heads
        from brt_dist.model.dropout import dropped_into
        from brt_dist.model.kernels.base import kernel
        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import RMSNorm
        from brt_dist.model.positions import rotated
        from brt_dist.model.remade import Remade

        attended = model.heads * model.head_dim

        def turned(x: "Tensor", scale: float = 1.0) -> "Tensor":
            return rotated(x * scale)

        class BidirectionalAttention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)
                self.projections = ColumnLinear(model.width, 3 * attended, parallel, stacked=(3, model.head_dim))
                self.output = RowLinear(attended, model.width, parallel)

            def forward(
                self, x: "Tensor", memory: "Memory", starts: "Tensor", dropout: "Dropout | None", fed_back: None = None
            ) -> "tuple[Tensor, Memory]":
                projected = self.norm(x, dropped_into(self.projections, dropout, index, "attention input"))
                blocks = projected.unflatten(0, (-1, model.window))
                queries, keys, values = split_heads(blocks, 3, model.head_dim)
                remade = Remade()
                asked, offered = remade.made(turned, queries, model.head_dim**-0.5), remade.made(turned, keys)
                with remade.read():
                    read = kernel(model.attention_kernel, x.device).everywhere(asked, offered, values)
                return self.output(merge_heads([read]).flatten(0, 1)), {}

        return BidirectionalAttention()
