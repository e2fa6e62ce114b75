"""Linear attention (Transformers are RNNs, arXiv 2006.16236): what was read so far is a matrix for each head.

With phi(x) = elu(x) + 1, and for each head S_t = S_{t-1} + phi(k_t) v_t^T and z_t = z_{t-1} + phi(k_t), token t reads
phi(q_t)^T S_t / (phi(q_t)·z_t + 1e-6).  S and z start at zero with a document and are all that is carried, so time and
memory for a token do not depend on how much was read before it.  z is the last column of S here: the value 1 is
appended to every v.

S and z only grow, over a whole book.  They are kept in float32 at least, and their size is a statistic.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import STATE_MAX, STATE_RMS, MemoryField, Mixer, Statistic

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import Tensor, nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder
    from brt_dist.model.dropout import Dropout
    from brt_dist.model.memory import Memory

EPSILON = 1e-6


class LinearMixer(Mixer):
    """Linear attention over all tokens of the document so far, without positions."""

    kind: Literal["linear"] = Field("linear", description="linear attention, a matrix of sums carried for each head")

    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        return (MemoryField("state", (model.heads, model.head_dim, model.head_dim + 1), dtype="float32", split=0),)

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        attended = model.heads * model.head_dim
        yield Matrix(model.width)
        yield Matrix(3 * attended, model.width, True, 3)
        yield Matrix(model.width, attended, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        attended, summed = model.heads * model.head_dim, model.heads * (model.head_dim + 1)
        total = 2.0 * model.width * 3 * attended + 2 * attended * model.width
        total += 2 * 2 * model.head_dim * summed  # a token is added to the sums, and reads them
        if executed:  # within a block tokens meet in pairs instead, half of which are masked away
            total += 2 * model.window * (attended + summed)
        return total

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, size = model.heads // local.tensor, model.head_dim
        # in float32: queries and keys before the feature map, and after it in the order of each product; where the
        # model is in float32, values lie in one tensor with both
        wide = (2 + (local.itemsize == 4) + 4) * size + 2 * (size + 1) + model.window
        wide = local.tokens * heads * wide + local.blocks * heads * size * (size + 1)
        read = local.tokens * heads * size * local.itemsize
        return local.normed(model.width, model.dropout) + 4 * wide + read

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # float32 gradients of four vectors of a token, and one as narrow as the model
        narrow = local.itemsize if local.itemsize < 4 else 0
        gradients = local.tokens * model.heads // local.tensor * model.head_dim * (4 * 4 + narrow)
        return local.hidden(model.width) + max(gradients, local.gathered(model.width))

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 120 + 6 * (segment // model.window)

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: linear attention attends to no state of another layer; "
                "nearest: model.feedback=false"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from torch import nn

        from brt_dist.model.attention import merge_heads, split_heads
        from brt_dist.model.dropout import dropped_into
        from brt_dist.model.linear import ColumnLinear, RowLinear
        from brt_dist.model.norms import RMSNorm, widened

        attended = model.heads * model.head_dim

        class LinearAttention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(model.width)
                self.projections = ColumnLinear(model.width, 3 * attended, parallel, stacked=(3, model.head_dim))
                self.output = RowLinear(attended, model.width, parallel)

            def forward(
                self, x: "Tensor", memory: "Memory", starts: "Tensor", dropout: "Dropout | None", fed_back: None = None
            ) -> "tuple[Tensor, Memory]":
                projected = self.norm(x, dropped_into(self.projections, dropout, index, "attention input"))
                blocks = projected.unflatten(0, (starts.shape[1], -1))
                queries, keys, values = (widened(part) for part in split_heads(blocks, 3, model.head_dim))
                read, state = linear_attention(phi(queries), phi(keys), values, memory["state"], starts)
                merged = merge_heads([read.to(blocks.dtype)]).flatten(0, 1)
                return self.output(merged), {"state": state}

            def statistics(self, memories: "Sequence[Memory]") -> "Iterator[tuple[str, Tensor]]":
                for memory in memories:
                    yield "state_rms", memory["state"].double()
                    yield "state_max", memory["state"].double()

            def statistics_parameters(self) -> list[nn.Parameter]:
                return []

        return LinearAttention()

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.stepping import Stepping

        return Stepping(module)


def phi(x: "Tensor") -> "Tensor":
    """The feature map elu(x) + 1 of queries and keys, above zero everywhere."""
    from torch.nn import functional

    return functional.elu(x) + 1


def linear_attention(
    queries: "Tensor", keys: "Tensor", values: "Tensor", state: "Tensor", starts: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """Read with `queries`, block by block; within a block all tokens at once.

    Args:
        queries, keys: (b, t, h, W, E) features, above zero.
        values: (b, t, h, W, M).
        state: (b, h, E, M+1) sums before the first block; the last column belongs to the normaliser.
        starts: (b, t) bool; where true the sums that enter the block are zero.

    Returns:
        (b, t, h, W, M), and the sums after the last block.
    """
    import torch

    values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    sums = keys.transpose(-1, -2) @ values
    entering = []
    for block in range(starts.shape[1]):
        state = state.masked_fill(starts[:, block, None, None, None], 0.0)
        entering.append(state)
        state = state + sums[:, block]
    read = queries @ torch.stack(entering, 1) + (queries @ keys.transpose(-1, -2)).tril() @ values
    return read[..., :-1] / (read[..., -1:] + EPSILON), state
