"""DeltaNet (arXiv 2406.06484): a matrix for each head, corrected in the direction of the current key.

Queries, keys and values are maps of the token, then a convolution over the last 4 tokens of each channel by itself,
then SiLU; queries and keys are scaled to unit length.  With beta_t = sigmoid(x_t w) for each head,

    S_t = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T,    o_t = S_t^T q_t / sqrt(E)

so what S says about k_t is replaced by v_t (beta = 1), where linear attention would add to it.  o goes through an
RMSNorm of each head, then the output map.  S and the last 3 inputs of the convolutions are carried; both start at zero
with a document.

From the authors' code: sizes, gate and convolution.  Initial values are those of the other mixers, except the authors'
0.02 for convolutions; the epsilon of the head norm is 1e-6 (theirs: 1e-5).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import STATE_MAX, STATE_RMS, MemoryField, Mixer, Statistic

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder


class DeltaMixer(Mixer):
    """The delta rule over all tokens of the document so far, without positions."""

    kind: Literal["delta"] = Field("delta", description="DeltaNet: a matrix carried for each head, corrected by keys")
    value_dim: PositiveInt | None = Field(None, description="size of the values of a head; unset: model.head_dim")
    convolution: PositiveInt = Field(
        4, ge=2, description="tokens that the short convolutions see; model.window must be at least one less"
    )
    gate: bool = Field(False, description="multiply what a head reads by the SiLU of a projection of the token")
    negative_eigenvalues: bool = Field(
        False, description="double beta: a token can then also flip what the state stores (arXiv 2411.12537)"
    )
    chunk: PositiveInt = Field(
        64, description="tokens read at once (speed only); the greatest common divisor with model.window is used"
    )

    changeable: ClassVar[tuple[str, ...]] = ("chunk",)
    beside_weights: ClassVar[tuple[str, ...]] = ("chunk",)
    backward_share: ClassVar[float] = 0.15
    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}
    rates: ClassVar[int] = 1
    """numbers that a projection gives for each head and token: beta"""

    def value_size(self, model: "ModelConfig") -> int:
        """Size of the values of a head."""
        return self.value_dim or model.head_dim

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        heads, size, values = model.heads, model.head_dim, self.value_size(model)
        return (
            MemoryField("state", (heads, size, values), dtype="float32", split=0),
            MemoryField("tail", (self.convolution - 1, heads, 2 * size + values), split=1, is_cache=True),
        )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        width, heads, size, values = model.width, model.heads, model.head_dim, self.value_size(model)
        yield Matrix(width)
        yield Matrix(2 * heads * size, width, True, 2)
        yield Matrix(heads * values, width, True)
        yield Matrix(self.rates * heads, width, True, self.rates)
        if self.gate:
            yield Matrix(heads * values, width, True)
        yield Matrix(heads * (2 * size + values), self.convolution, True)
        yield Matrix(values)
        yield Matrix(width, heads * values, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """Executed FLOPs include the triangular system, although torch's counter leaves it out."""
        size, values = model.head_dim, self.value_size(model)
        mapped = 2 * size + values + self.rates + (values if self.gate else 0) + values  # the last: output
        total = 2.0 * model.width * model.heads * mapped
        total += 3 * 2 * model.heads * size * values  # the state is asked about the key, corrected, and read
        if executed:  # products of pairs of a chunk: of keys, of queries and keys, with the writes; and the system
            chunk = gcd(model.window, self.chunk)
            total += model.heads * chunk * (2 * 2 * size + 2 * values + size + values)
        return total

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Of the rule as torch computes it; the kernels of flash-linear-attention keep less."""
        heads, size, values = model.heads // local.tensor, model.head_dim, self.value_size(model)
        chunk, decays = gcd(model.window, self.chunk), self.rates > 1
        # maps with the tokens before each block, convolved, and activated
        convolved = 3 * (2 * size + values) + (2 * size + values) * (self.convolution - 1) // model.window
        narrow = convolved + (1 + 3 * self.gate) * values
        # queries and keys in the order of each product; writes twice, and what is read
        wide = (6 + 2 * decays) * size + 3 * values
        wide += 2 * (size + values)  # both sides of the triangular system
        wide += (6 if decays else 3) * chunk + 2 * size * values // chunk  # pairs of a chunk; states that enter it
        kept = local.tokens * heads * (narrow * local.itemsize + 4 * wide + (chunk if decays else 0))
        return local.entered(model.width) + local.mask(model.width, model.dropout) + kept

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 300 + (22 if self.rates == 1 else 28) * (segment // gcd(model.window, self.chunk))

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: the delta rule attends to no state of another layer; "
                "nearest: model.feedback=false"
            )
        if config.model.window < self.convolution - 1:
            yield (
                f"{key}.convolution={self.convolution} with model.window={config.model.window}: the tokens before a "
                f"block must lie in one block; nearest: {key}.convolution={config.model.window + 1}"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.delta_attention import DeltaAttention

        return DeltaAttention(self, model, index, parallel)

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.stepping import Stepping

        return Stepping(module)

    def build_decay(self, heads: int) -> "nn.Module | None":
        """Parameters that turn a projection of the token into the decays of this rank's heads: none."""
        return None
