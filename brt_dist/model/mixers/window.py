"""Attention within a sliding window of tokens, and what it shares with the recurrent mixer (arXiv 2203.07852)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, PositiveFloat

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.errors import ConfigError
from brt_dist.model.mixers.base import MemoryField, Mixer
from brt_dist.model.shapes import POSITION_BUCKETS, logits_at_once, sub_block

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder
    from brt_dist.model.reference_names import Permutation


class AttentionMixer(Mixer):
    """Tokens attend to the W tokens before them; the cache of the last W keys and values is carried."""

    positions: Literal["t5", "rotary", "none"] = Field(
        "t5", description="positions in token-to-token attention: T5 relative bias, rotary, or none"
    )
    attention_scale: Literal["absolute", "raw"] = Field(
        "absolute", description="how the learned scale per head is used; 'raw': as in the paper's 2022 code"
    )

    query_length: PositiveFloat = Field(
        1.0,
        description="initial length of queries, which is learned: 1 as in the authors' code; the square root of "
        "model.head_dim makes attention start as sharp as a Transformer's",
    )
    qkv: Literal["dense", "multiplicative"] = Field(
        "dense", description="how tokens are projected to heads; multiplicative: from two small matrices (2111.12763)"
    )

    changeable: ClassVar[tuple[str, ...]] = ("attention_scale",)

    def crosses(self, model: "ModelConfig") -> bool:
        """Whether tokens also attend to a recurrent state: their layer's, or with feedback another one's."""
        return model.feedback

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        cache = (model.window, model.heads, model.head_dim)
        return MemoryField("keys", cache, split=1, is_cache=True), MemoryField("values", cache, split=1, is_cache=True)

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        attended, kinds = model.heads * model.head_dim, 1 + self.crosses(model)
        yield Matrix(model.width)
        if self.qkv == "multiplicative":
            yield Matrix((2 + kinds) * model.heads, model.width, True, 2 + kinds)
            yield Matrix((2 + kinds) * model.head_dim, model.width, False, 2 + kinds)
        else:
            yield Matrix((2 + kinds) * attended, model.width, True, 2 + kinds)
        yield from (Matrix(model.heads, split=True) for _ in range(kinds))
        if self.positions == "t5":
            yield Matrix(model.heads, POSITION_BUCKETS, True)
        yield Matrix(model.width, kinds * attended, True)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """Counts what the model needs: W tokens, although block products compute all 2W that some token may see."""
        attended, kinds = model.heads * model.head_dim, 1 + self.crosses(model)
        total = 2.0 * model.width * (2 + kinds) * attended  # keys, values, and queries of each kind
        total += self._of_tokens(model, executed)
        return total + 2 * kinds * attended * model.width

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        return self._of_tokens(model, executed)

    def _of_tokens(self, model: "ModelConfig", executed: bool) -> float:
        """FLOPs of logits and values, of tokens that attend to tokens and to states."""
        seen = 2 * model.window if executed else model.window
        return 4.0 * (seen + self.states_seen(model)) * model.heads * model.head_dim

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, kinds, width = model.heads // local.tensor, 1 + self.crosses(model), model.width
        tokens, vectors = local.tokens, local.tokens * heads * model.head_dim
        # projections; what was read, of each kind; queries of states
        values = ((2 + kinds) + kinds + (kinds - 1)) * vectors
        kept = values * local.itemsize + 4 * (1 + kinds) * tokens * heads
        kept += local.made((1 + 4) * vectors * local.itemsize)  # queries; keys and values of two blocks
        if model.feedback:  # keys that the windows of the next block are made of
            kept += local.made_again(vectors * local.itemsize)
        if local.kernel == "triton":  # keeps what was read, and one number for each query, besides their copy
            kept += kinds * (vectors * local.itemsize + 4 * tokens * heads)
        if model.feedback and self.positions == "t5":  # the bias is laid out anew for each block
            rows = sub_block(model.window)
            kept += 4 * local.blocks // local.streams * heads * rows * (rows + model.window)
        if model.dropout:  # of the probabilities, the same for all blocks
            kept += local.streams * heads * 2 * model.window**2
        if self.qkv == "multiplicative":  # the matrix is made from two small ones
            rows = (2 + kinds) * heads * model.head_dim
            kept += rows * width * local.itemsize + local.gathered(width)
        return kept + local.normed(width, model.dropout)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 280 if self.positions == "rotary" else 220

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads = model.heads // local.tensor
        vectors = local.tokens * heads * model.head_dim
        to_states = self.of_states(model, local)
        return local.hidden(model.width) + max(
            to_states, self._of_window(model, local, heads, vectors), 2 * local.gathered(model.width)
        )

    def of_states(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Bytes of the backward pass of tokens that attend to states: their logits and gradients."""
        logits = model.heads // local.tensor * self.states_seen(model)  # of a token
        return local.softmax(logits_at_once(local.kernel, local.tokens * logits, local.window * logits))

    def _of_window(self, model: "ModelConfig", local: LocalSegment, heads: int, vectors: int) -> int:
        """Bytes of attention to the window: queries, keys and values, made again, and gradients.

        Those are of what was read, of queries, and of keys and values twice.
        """
        rows, columns = sub_block(model.window), 2 * model.window
        again = local.made_again((1 + 4) * vectors * local.itemsize)
        if local.kernel != "blocked" or rows == model.window:
            least = heads * rows * columns
            logits = logits_at_once(local.kernel, local.blocks * least, least)
            return again + 6 * vectors * local.itemsize + local.softmax(logits)
        columns = rows + model.window
        least = heads * rows * columns  # of one block
        logits = logits_at_once(local.kernel, local.blocks * least, least)
        pieces = logits * (4 * 4 + 2 * 4)  # of one piece as above, and two of the piece before
        rounded = 4 * vectors * local.itemsize if local.itemsize < 4 else 0  # when all pieces are summed up
        # of what was read also as the kernel wants it
        return again + 3 * vectors * local.itemsize + 4 * vectors * 4 + max(pieces, rounded)

    def between_blocks(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Keys, and the projections that values are a part of, of all blocks but the last."""
        if not model.feedback:
            return 0
        vectors = (local.tokens - local.streams * local.window) * model.heads * model.head_dim // local.tensor
        return (4 + 1) * vectors * local.itemsize

    def states_seen(self, model: "ModelConfig") -> int:
        """How many state vectors a token attends to."""
        return model.mixer_of(model.feeding_layers()[-1]).states_fed_back() if model.feedback else 0

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        size = config.model.head_dim
        if self.positions == "rotary" and size % 2:
            yield (
                f"{key}.positions=rotary with model.head_dim={size}: pairs of channels are rotated, so their number "
                f"must be even; nearest: model.head_dim={size + 1}, or {key}.positions=t5"
            )

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        from brt_dist.model.reference_names import FromHeads, Same, projections

        if self.qkv == "multiplicative":
            raise ConfigError(
                "the reference implementation does not have qkv=multiplicative; nearest: `brt export --to safetensors`"
            )

        base, crosses = f"transformer{layer}/tbase", self.crosses(model)
        yield "tokens.norm.weight", Same((f"{base}/_kvq/pre_attn_layernorm/scale",))
        yield "tokens.projections.weight", projections(base, model.heads, crosses)
        yield "tokens.scale.weight", Same((f"{base}/_kvq/attention_scale",))
        if self.positions == "t5":
            yield "tokens.positions.weight", Same((f"transformer{layer}/relative_positions/rel_embedding",))
        merge = f"{base}/post_attn_mlp/output_layer/kernel"
        yield "tokens.merge.weight", FromHeads((merge,), model.heads, 1 + crosses)
        if crosses:
            yield "tokens.state_scale.weight", Same((f"{base}/attention_scale2",))


class WindowMixer(AttentionMixer):
    """Attention within a sliding window only.  With a window as long as the segment, this is Transformer-XL."""

    kind: Literal["window"] = Field("window", description="attention within a sliding window of tokens")

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.window_attention import WindowAttention

        return WindowAttention(self, model, index, parallel)

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.window_attention import WindowAttention
        from brt_dist.model.window_decoding import WindowDecoder

        return WindowDecoder(cast(WindowAttention, module))
