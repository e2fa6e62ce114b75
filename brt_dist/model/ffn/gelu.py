"""The FFN of GPT-2: gelu(norm(x) W1 + b1) W2 + b2, with a LayerNorm and GELU (arXiv 1606.08415) by its tanh formula."""

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


class GeluFFN(FFN):
    """A LayerNorm, a dense layer, GELU, a dense layer; all with biases."""

    kind: Literal["gelu"] = Field("gelu", description="LayerNorm and two dense layers, with GELU and biases (GPT-2)")
    width: PositiveInt = Field(4096, description="hidden width [F]")

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield from (Matrix(model.width), Matrix(model.width))
        yield from (Matrix(self.width, model.width, True), Matrix(self.width, split=True))
        yield from (Matrix(model.width, self.width, True), Matrix(model.width))

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 4 * model.width * self.width

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        # hidden units before and after GELU; the norm's input in float32
        hidden = 2 * local.tokens * self.width // local.tensor * local.itemsize
        norm = local.own_tokens * model.width * (4 + local.itemsize)
        return norm + local.mask(model.width, model.dropout) + hidden

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gradients of hidden units, and of the weight of the second layer
        hidden = (local.tokens + model.width) * self.width // local.tensor * local.itemsize
        return local.hidden(model.width) + hidden + 2 * local.gathered(model.width)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 40

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.width": self.width}

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        import torch
        from torch import nn
        from torch.nn import functional

        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import LayerNorm
        from brt_dist.model.parameters import constant, declare

        width = self.width

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = LayerNorm(model.width)
                self.hidden = ColumnLinear(model.width, width, parallel)
                self.hidden_bias = nn.Parameter(torch.empty(width // parallel.tensor_model_parallel_size))
                declare(self.hidden_bias, constant(0.0), 0)
                self.output = RowLinear(width, model.width, parallel)
                self.output_bias = nn.Parameter(torch.empty(model.width))
                declare(self.output_bias, constant(0.0))

            def forward(self, x: "Tensor", dropout: "Dropout | None") -> "Tensor":
                hidden = self.hidden(self.norm(x)) + self.hidden_bias
                x = self.output(functional.gelu(hidden, approximate="tanh")) + self.output_bias
                return x if dropout is None else dropout.activations(x, index, "mlp output")

        return Module()
