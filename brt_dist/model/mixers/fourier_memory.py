"""A compressed memory of older blocks beside the sliding window.  Ours: no paper has it.

Tokens attend to the W tokens before them, and to R older blocks of which only M = ceil(p W) rows are kept for each
head: the lowest M frequencies of an orthonormal cosine transform of the block's keys and values along its tokens,
transformed back to M rows, as the Fourier Transformer (arXiv 2305.15099) shortens the input of an encoder.  Only blocks
that have ended are compressed, so it is causal; what is carried does not grow, and what is older than R blocks is
forgotten.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from brt_dist.config.encoder import share_of
from brt_dist.config.local_segment import LocalSegment
from brt_dist.errors import ConfigError
from brt_dist.model.mixers.base import MemoryField, Mixer
from brt_dist.model.mixers.window import AttentionMixer

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder
    from brt_dist.model.reference_names import Permutation


class FourierMemoryMixer(AttentionMixer):
    """Attention to the window, and to the lowest frequencies of older blocks."""

    kind: Literal["fourier_memory"] = Field(
        "fourier_memory", description="a sliding window, and older blocks compressed by cosine transforms"
    )
    blocks: PositiveInt = Field(8, description="how many blocks before the previous one are remembered [R]")
    keep: PositiveFloat = Field(0.25, le=1.0, description="share of the rows of each such block that is kept [p]")

    def crosses(self, model: "ModelConfig") -> bool:
        return True

    def rows(self, model: "ModelConfig") -> int:
        """Rows that are kept of a block."""
        return share_of(model.window, self.keep)

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        shape = (self.blocks * self.rows(model), model.heads, model.head_dim)
        older = (MemoryField(name, shape, split=1) for name in ("older_keys", "older_values"))
        return [*super().memory(model), *older]

    def states_seen(self, model: "ModelConfig") -> int:
        return self.blocks * self.rows(model)

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        vectors = model.heads // local.tensor * model.head_dim
        rows = local.blocks * self.rows(model)
        # keys and values that each block sees; rows before they have unit length
        kept = (2 * self.blocks + 1) * rows * vectors * local.itemsize + 4 * rows * model.heads // local.tensor
        # float32 coefficients of the blocks' keys and values, and complex ones of those that are left
        transforms = 2 * vectors * (4 * local.tokens + 8 * rows)
        return super().activations(model, local) + kept + transforms

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 380 + 10 * (segment // model.window)

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        yield from super().broken_rules(config, key)
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: its tokens attend to older blocks and to no state of another layer; "
                "nearest: model.feedback=false"
            )

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        raise ConfigError(
            f"the reference implementation does not have {self.kind}; nearest: `brt export --to safetensors`"
        )

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        return Mixer.decoder(self, module, model)

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.fourier_memory import FourierMemoryAttention

        return FourierMemoryAttention(self, model, index, parallel)
