"""MemSizer (arXiv 2203.12644): a memory of k rows, the same for all heads, to which each token adds.

    q_t = mean over heads of softmax(x_t Wq + bq)      over the k rows
    k_t = LayerNorm(x_t Wk + bk)                       k numbers
    v_t = LayerNorm(x_t Wv + bv)                       D numbers
    S_t = S_{t-1} + k_t v_t^T,   y_t = q_t S_t / sqrt(t)

t counts the tokens of the document.  S and the count start at zero with a document and are all that is carried; without
the count, y would jump at the beginning of a segment.  There is no output map.  Weights start with the variance of the
authors' Xavier initialisation, but from a normal distribution cut off at two standard deviations instead of uniform.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import STATE_MAX, STATE_RMS, MemoryField, Mixer, Statistic

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder


class MemSizerMixer(Mixer):
    """A memory of a few rows over all tokens of the document so far, without positions."""

    kind: Literal["memsizer"] = Field("memsizer", description="MemSizer: a memory of k rows that all heads share")
    rows: PositiveInt = Field(32, description="rows of the memory [k]")
    query_scale: PositiveFloat = Field(32.0, description="divides the initial variance of the query projection")

    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        return (
            MemoryField("state", (self.rows, model.width), dtype="float32", split=1),
            MemoryField("count", (1,), dtype="float32"),
        )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        width, asked = model.width, model.heads * self.rows
        yield Matrix(width)
        yield from (Matrix(asked, width), Matrix(asked), Matrix(self.rows, width), Matrix(self.rows))
        yield from (Matrix(width, width, True), Matrix(width, split=True))
        yield from (Matrix(self.rows), Matrix(self.rows), Matrix(width, split=True), Matrix(width, split=True))

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        width = model.width
        total = 2.0 * width * ((model.heads + 1) * self.rows + width)
        total += 2 * 2 * self.rows * width  # a token is added to the memory, and reads it
        if executed:  # within a block tokens meet in pairs instead, half of which are masked away
            total += 2 * model.window * (self.rows + width)
        return total

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        width, own, tokens = model.width, local.own_tokens, local.tokens
        asked = 4 * own * model.heads * self.rows
        wide = tokens * (3 * width // local.tensor + 2 * self.rows + model.window)
        states = local.blocks * self.rows * width // local.tensor
        entered = tokens * width * local.itemsize if local.sequence_parallel else 0
        normed = local.normed(width) + local.hidden(width) + local.mask(width, model.dropout)
        return normed + entered + asked + 4 * (wide + states)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # float32 gradients of two vectors of a token
        gradients = 2 * 4 * local.tokens * model.width // local.tensor
        return local.hidden(model.width) + max(gradients, local.gathered(model.width))

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.width": model.width}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: MemSizer attends to no state of another layer; "
                "nearest: model.feedback=false"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.memsizer import MemSizer

        return MemSizer(self, model, index, parallel)

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.stepping import Stepping

        return Stepping(module)
