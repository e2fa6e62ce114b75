"""The Block-State Transformer (arXiv 2306.09539): the recurrent layer with filters instead of the recurrence.

Beside their window, tokens attend to contexts that causal filters (state space models) make of all tokens of the
document.  Nothing is sequential over blocks but a sum of states, so all blocks run at once.  See docs/kinds/bst.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.errors import ConfigError
from brt_dist.model.mixers.base import STATE_MAX, STATE_RMS, MemoryField, Mixer, Statistic
from brt_dist.model.mixers.window import AttentionMixer

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.decoding import BlockDecoder
    from brt_dist.model.reference_names import Permutation

UNSTRUCTURED_FEATURES = 16


class BlockStateMixer(AttentionMixer):
    """Window attention, and attention to the outputs of filters over the whole document."""

    kind: Literal["bst"] = Field("bst", description="window attention with contexts from state space filters")
    contexts: Literal["single_head", "multi_head", "multi_filter"] = Field(
        "single_head",
        description="single_head: one filter for each channel; multi_head: one for each channel and head; "
        "multi_filter: several for each channel, whose last outputs in the previous block tokens see",
    )
    context_filters: PositiveInt = Field(
        32, description="contexts=multi_filter: number of filters for each channel [S]"
    )
    filter: Literal["s4d", "unstructured"] = Field(
        "s4d", description="s4d: diagonal state space models; unstructured: any kernel, with no state to carry"
    )
    filter_states: PositiveInt = Field(16, description="filter=s4d: size of the state of each filter [N], even")
    carry: bool = Field(True, description="carry the state of filters over segments; false: reset it at every segment")

    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}

    def crosses(self, model: "ModelConfig") -> bool:
        return True

    def filters(self, model: "ModelConfig") -> int:
        """Filters for each channel, of all ranks."""
        return {"single_head": 1, "multi_head": model.heads, "multi_filter": self.context_filters}[self.contexts]

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        shape = (self.filters(model), model.width, self.filter_states // 2, 2)
        split = 0 if self.contexts == "multi_head" else None
        fields = [*super().memory(model), MemoryField("filters", shape, dtype="float32", split=split)]
        if self.contexts == "multi_filter":
            contexts = (self.context_filters, model.width)
            fields.append(MemoryField("contexts", contexts, dtype="float32", start="initial_contexts"))
        return fields

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield from super().parameters(model)
        own, filters = self.contexts == "multi_head", self.filters(model)
        rows = filters * model.width
        yield Matrix(rows, split=own)
        if self.filter == "s4d":
            yield from (Matrix(rows, self.filter_states // 2, own), Matrix(rows, self.filter_states // 2, own))
            yield Matrix(rows, self.filter_states, own)
        else:
            yield Matrix(rows, UNSTRUCTURED_FEATURES, own)
        yield Matrix(filters, model.width, own)
        yield Matrix(model.heads if own else 1, model.width, own)
        yield Matrix(2 * model.heads * model.head_dim, model.width, True, 2)
        if self.contexts == "single_head":
            yield Matrix(model.heads, split=True)
        if self.contexts == "multi_filter":
            yield from (Matrix(self.context_filters, model.width), Matrix(self.context_filters, model.width))

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """Fourier transforms are left out, like everything that is not a matrix product."""
        attended, window = model.heads * model.head_dim, model.window
        states = 2.0 * self.filters(model) * model.width * self.filter_states if self.filter == "s4d" else 0.0
        projected = 2 * model.width * 2 * attended
        if self.contexts == "multi_filter":
            projections = self.context_filters * projected / window
        else:
            projections = float(projected)
            states *= 2  # the sum of a block, and what the state shows to its tokens
        return super().flops(model, executed) + states + projections + self._of_contexts(model, executed)

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        return super().attention_flops(model, executed) + self._of_contexts(model, executed)

    def _of_contexts(self, model: "ModelConfig", executed: bool) -> float:
        """FLOPs of tokens that attend to the contexts of their block."""
        window = float(model.window if executed else (model.window + 1) / 2)
        seen = self.context_filters if self.contexts == "multi_filter" else window
        return 4 * seen * model.heads * model.head_dim

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, itemsize, width = model.heads // local.tensor, local.itemsize, model.width
        filters = heads if self.contexts == "multi_head" else self.filters(model)
        last = self.contexts == "multi_filter"
        seen = local.blocks * filters if last else local.tokens * filters  # contexts of all blocks
        pairs = (seen if last else local.tokens) * heads * model.head_dim  # their keys
        # contexts before and after their norm; keys, values, and keys of unit length
        kept = seen * (2 * width * itemsize + 4) + 3 * pairs * itemsize
        if self.contexts == "single_head":  # keys and values times the number of their head
            kept += 2 * pairs * itemsize
        # the filters' input, all tokens, and in float32
        inputs = 4 * local.own_tokens + local.tokens * width * (itemsize + (4 if itemsize < 4 else 0))
        attention = super().activations(model, local)
        return attention + inputs + kept + filters * width * self._filter_bytes(local) + self._spectra(width, local)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        own, kept = local.hidden(model.width), self.activations(model, local)
        if self.contexts == "multi_filter":
            return own + round(0.9 * kept)
        if self.contexts == "multi_head":
            return own + round((1.0 if local.itemsize < 4 else 0.55) * kept)
        to_contexts = local.softmax(local.tokens * model.heads // local.tensor * model.window)
        return own + max(to_contexts, round(0.4 * kept))

    def _filter_bytes(self, local: LocalSegment) -> int:
        """What a filter of one channel keeps, its kernel included; complex numbers have 8 bytes."""
        window, segment, states = local.window, local.segment, self.filter_states // 2
        if (
            self.filter == "unstructured"
        ):  # the kernel's factors; its lags, and spectra for each block from the first on
            blocks = segment // window
            return 4 * segment * (2 + 2) + 8 * (window + 1) * blocks * (blocks + 1) // 2
        space = 60 * states  # parameters, and what is made of them
        if self.contexts == "multi_filter":  # powers, and in the order of their product; states that enter and leave
            return space + 2 * 8 * states * (window + local.blocks)
        # powers three times and two such copies; the kernel and its spectrum; states that enter, and their copies
        states_kept = 8 * states * (2 * local.blocks - local.streams)
        return space + 5 * 8 * states * window + 8 * (2 * window + 1) + states_kept

    def _spectra(self, width: int, local: LocalSegment) -> int:
        """The filters' input, padded, and its Fourier transform, where there is one."""
        if self.contexts == "multi_filter" and self.filter == "s4d":
            return 0
        return width * local.blocks * 8 * (2 * local.window + 1)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 520 + 13 * (segment // model.window)

    def states_seen(self, model: "ModelConfig") -> int:
        return 0  # what is seen of the contexts is counted above

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        yield from super().broken_rules(config, key)
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: its tokens attend to contexts and to no state of another layer; "
                "nearest: model.feedback=false"
            )
        if self.filter == "unstructured" and self.carry:
            yield (
                f"{key}.filter=unstructured with {key}.carry=true: a filter without a state has nothing that could be "
                f"carried to the next segment; nearest: {key}.carry=false, or {key}.filter=s4d"
            )
        if self.filter_states % 2:
            yield (
                f"{key}.filter_states={self.filter_states} must be even, because states are pairs of conjugate "
                f"numbers; nearest: {key}.filter_states={self.filter_states + 1}"
            )

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        raise ConfigError(
            f"the reference implementation does not have {self.kind}; nearest: `brt export --to safetensors`"
        )

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        return Mixer.decoder(self, module, model)

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.block_state import BlockStateAttention

        return BlockStateAttention(self, model, index, parallel)
