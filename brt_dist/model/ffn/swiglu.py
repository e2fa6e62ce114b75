"""The gated FFN of LLaMA, SwiGLU (arXiv 2002.05202): (silu(norm(x) G) * (norm(x) W1)) W2, without biases."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.ffn.base import FFN

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import Tensor, nn

    from brt_dist.config.schema import ModelConfig
    from brt_dist.model.dropout import Dropout


class SwigluFFN(FFN):
    """Hidden units gated by a second projection of the input."""

    kind: Literal["swiglu"] = Field("swiglu", description="hidden units gated with SiLU by a second projection")
    width: PositiveInt = Field(2816, description="hidden width [F]; 2/3 of a ReLU FFN's width gives as many parameters")

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield Matrix(model.width)
        yield Matrix(2 * self.width, model.width, True, 2)
        yield Matrix(model.width, self.width, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 6 * model.width * self.width

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gate and hidden units, the gate's SiLU, and their product
        hidden = 4 * local.tokens * self.width // local.tensor * local.itemsize
        return local.normed(model.width) + local.mask(model.width, model.dropout) + hidden

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gradients of two of the hidden tensors
        hidden = 2 * local.tokens * self.width // local.tensor * local.itemsize
        return local.hidden(model.width) + hidden + 2 * local.gathered(model.width)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 40

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.width": self.width}

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn
        from torch.nn import functional

        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import RMSNorm

        width = self.width

        class Module(nn.Module):
            """Rows of `hidden` alternate: one of the gate, one of the units."""

            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)
                self.hidden = ColumnLinear(model.width, 2 * width, parallel, stacked=(2, 1))
                self.output = RowLinear(width, model.width, parallel)

            def forward(self, x: "Tensor", dropout: "Dropout | None") -> "Tensor":
                gate, units = self.norm(x, self.hidden).unflatten(-1, (-1, 2)).unbind(-1)
                x = self.output(functional.silu(gate) * units)
                return x if dropout is None else dropout.activations(x, index, "mlp output")

        return Module()
