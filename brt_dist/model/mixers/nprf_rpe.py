"""Kernelised attention with relative positions (arXiv 2106.12566): softmax's kernel by random features, and a bias.

With phi(x) = exp(Wx - |x|^2/2) / sqrt(m) of queries and keys of unit length, W (m, E) random and fixed for each head,
and a bias b of each lag, token i reads

    z_i = sum_j exp(b_{i-j}) phi(q_i)·phi(k_j) v_j  /  sum_j exp(b_{i-j}) phi(q_i)·phi(k_j),    j <= i

The weights exp(b_{i-j}) of a block and the block before form a Toeplitz matrix; sums are taken with the matrix, or by
FFT over the products phi(k_j) v_j^T.

A separate bias for every lag has no finite state.  Here all lags from `reach` on share one bias, which has: tokens
more than a block back contribute to numerator and denominator through a matrix of sums for each head, as in linear
attention.  These sums, and features and values of the last block, are carried, so a document reads the same however it
is cut into segments.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import STATE_MAX, STATE_RMS, MemoryField, Mixer, Statistic

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig


class KernelMixer(Mixer):
    """Kernelised attention over all tokens of the document so far, with relative positions."""

    kind: Literal["nprf_rpe"] = Field("nprf_rpe", description="kernelised attention with a bias for each lag")
    features: PositiveInt = Field(64, description="random features of a head [m]")
    reach: PositiveInt | None = Field(
        None, description="lag, in tokens, from which on all share one bias; at most model.window, which is the default"
    )
    normalized: bool = Field(
        True, description="scale queries and keys to unit length, which keeps training stable at high learning rates"
    )
    method: Literal["dense", "fft"] = Field(
        "dense",
        description="how to sum over lags: with a matrix, or with an FFT, which takes features*head_dim times the "
        "memory of a value and only pays off for very long windows",
    )
    seed: NonNegativeInt = Field(0, description="seed of the random features; weights only work with their own seed")

    changeable: ClassVar[tuple[str, ...]] = ("method",)
    beside_weights: ClassVar[tuple[str, ...]] = ("method",)
    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}

    def lags(self, model: "ModelConfig") -> int:
        """The lag from which on all share one bias."""
        return self.reach or model.window

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        window, heads, size = model.window, model.heads, model.head_dim
        return (
            MemoryField("sums", (heads, self.features, size + 1), dtype="float32", split=0),
            MemoryField("features", (window, heads, self.features), dtype="float32", split=1, is_cache=True),
            MemoryField("values", (window, heads, size), split=1, is_cache=True),
        )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        attended = model.heads * model.head_dim
        yield Matrix(model.width)
        yield Matrix(3 * attended, model.width, True, 3)
        yield Matrix(model.heads, self.lags(model) + 1, True)
        yield Matrix(model.width, attended, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """FFTs are left out, like everything that is not a matrix product."""
        size, summed, features = model.head_dim, model.head_dim + 1, self.features
        total = 2.0 * model.width * 4 * model.heads * size
        head = 2 * 2 * size * features  # features of a query and a key
        head += 2 * 2 * features * summed  # a token is added to the sums, and reads them
        if executed and self.method == "fft":
            head += 2 * features * summed  # the sums over lags are read
        else:
            head += (2 * model.window if executed else self.lags(model)) * 2 * (features + summed)
        return total + model.heads * head

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, window, size = model.heads // local.tensor, local.window, model.head_dim
        tokens, features, summed = local.tokens * heads, self.features, model.head_dim + 1
        narrow = (1 + 3 * self.normalized) * size  # what was read; projections, where their lengths are taken
        # queries and keys, what they are made of, and their features, those of keys for two blocks; values of two
        # blocks; sums before they are divided
        wide = 2 * size + 2 * self.normalized + (2 + 1 + 2) * features + (2 + 1) * summed
        # the directions twice, and the sums that enter a block before and after their weight
        of_block = 2 * size * features + 2 * features * summed
        pairs, toeplitz = 2 * 2 * window, 4 * window**2  # of a token: products, before and after their weights
        if self.method == "fft":  # products of features and values, padded and transformed, and their sums
            pairs, toeplitz = features * summed * (2 * 2 + 4 + 1), 0
        kept = local.normed(model.width, model.dropout) + tokens * narrow * local.itemsize
        return kept + 4 * (tokens * (wide + pairs) + local.blocks * heads * of_block + heads * toeplitz)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        if self.method == "fft":
            return local.hidden(model.width) + round(1.6 * self.activations(model, local))
        # float32 gradients of pairs of tokens, products and weights, and of directions
        of_token = 2 * 2 * local.window + 2 * model.head_dim
        return local.hidden(model.width) + 4 * local.tokens * model.heads // local.tensor * of_token

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 300 if self.method == "fft" else 270

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: kernelised attention attends to no state of another layer; "
                "nearest: model.feedback=false"
            )
        if self.lags(config.model) > config.model.window:
            yield (
                f"{key}.reach={self.reach} with model.window={config.model.window}: tokens more than a block back are "
                f"carried as sums, in which lags cannot be told apart; nearest: {key}.reach={config.model.window}"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.kernel_attention import KernelAttention

        return KernelAttention(self, model, index, parallel)
