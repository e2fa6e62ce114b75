"""The dense FFN of the original Transformer (arXiv 1706.03762): relu(norm(x) W1) W2."""

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
    from brt_dist.model.reference_names import Permutation


class ReluFFN(FFN):
    """A dense layer, ReLU, a dense layer."""

    kind: Literal["relu"] = Field("relu", description="two dense layers with ReLU between them")
    width: PositiveInt = Field(4096, description="hidden width [F]")

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield Matrix(model.width)
        yield Matrix(self.width, model.width, True)
        yield Matrix(model.width, self.width, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 4 * model.width * self.width

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        hidden = local.tokens * self.width // local.tensor * local.itemsize
        return local.normed(model.width) + local.mask(model.width, model.dropout) + hidden

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gradients of hidden units, which ReLU's are written over, and of the weight of the second layer
        hidden = (local.tokens + model.width) * self.width // local.tensor * local.itemsize
        return local.hidden(model.width) + hidden + 2 * local.gathered(model.width)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 30

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.width": self.width}

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        from brt_dist.model.reference_names import Kernels, Same

        base = f"transformer{layer}/tbase"
        yield "norm.weight", Same((f"{base}/pre_ffn_layernorm/scale",))
        yield "hidden.weight", Kernels((f"{base}/ffn/hidden0/kernel",))
        yield "output.weight", Kernels((f"{base}/ffn/output_layer/kernel",))

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn

        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import RMSNorm
        from brt_dist.model.rectified import rectified

        hidden_width = self.width

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)
                self.hidden = ColumnLinear(model.width, hidden_width, parallel)
                self.output = RowLinear(hidden_width, model.width, parallel)

            def forward(self, x: "Tensor", dropout: "Dropout | None") -> "Tensor":
                x = self.output(rectified(self.norm(x, self.hidden)))
                return x if dropout is None else dropout.activations(x, index, "mlp output")

        return Module()
