"""The sparse FFN of Scaling Transformers (arXiv 2111.12763): exactly one of each block of N hidden units is active.

A small controller chooses: logits = norm(x) C1 C2 + c; the unit of each block with the largest logit is active.  The
result is relu(norm(x) W1 * mask) W2 + b with a mask of ones and zeros.

In training the mask is, for a share of the streams, the choice after Gumbel noise, with the gradient of the softmax
(straight through); for the others it is the softmax itself.  Training multiplies whole matrices, so it is no faster
than dense.  Without a gradient, and for fewer tokens than a block has units, only the weights of the chosen units are
read, which makes decoding a single stream fast.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.ffn.base import FFN

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import ModelConfig


class SparseFFN(FFN):
    """One unit of each block is active, chosen by a controller."""

    kind: Literal["sparse"] = Field("sparse", description="one hidden unit of each block is active for each token")
    blocks: PositiveInt = Field(64, description="number of blocks; the hidden width [F] is blocks*block_size")
    block_size: PositiveInt = Field(64, description="hidden units in a block [N]")
    rank: PositiveInt = Field(64, description="width between the two matrices of the controller")
    hard_share: NonNegativeFloat = Field(
        0.3, le=1.0, description="training: share of the streams, drawn at each step, that use the hard choice; the "
        "others use its softmax"
    )  # fmt: skip
    noise: NonNegativeFloat = Field(0.1, description="training: factor on the Gumbel noise of the choice; 0: none")

    @property
    def width(self) -> int:
        """Hidden width."""
        return self.blocks * self.block_size

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield Matrix(model.width)
        yield Matrix(self.rank, model.width)
        yield from (Matrix(self.width, self.rank, True), Matrix(self.width, split=True))
        yield from (Matrix(self.width, model.width, True), Matrix(self.width, model.width, True))
        yield Matrix(model.width)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return self._controller_flops(model) + 4.0 * model.width * self.width

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        # the softmax of the choice in float32; hidden units, the mask, and their product
        units = local.tokens * self.width // local.tensor * (4 + 3 * local.itemsize)
        compressed = local.tokens * self.rank * local.itemsize
        return local.entered(model.width) + local.mask(model.width, model.dropout) + units + compressed

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 60

    def decode_flops(self, model: "ModelConfig") -> float:
        """Forward FLOPs of a token that is decoded alone."""
        return self._controller_flops(model) + 4.0 * model.width * self.blocks

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.blocks": self.blocks}

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.sparse_units import SparseUnits

        return SparseUnits(self, model, index, parallel)

    def _controller_flops(self, model: "ModelConfig") -> float:
        return 2.0 * self.rank * (model.width + self.width)
