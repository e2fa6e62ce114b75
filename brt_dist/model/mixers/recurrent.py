"""The Block-Recurrent layer (arXiv 2203.07852): window attention beside a recurrent state that tokens attend to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import STATE_MAX, STATE_RANK, STATE_RMS, MemoryField, Statistic
from brt_dist.model.mixers.window import AttentionMixer
from brt_dist.model.shapes import logits_at_once

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import ModelConfig
    from brt_dist.model.decoding import BlockDecoder
    from brt_dist.model.reference_names import Permutation


class RecurrentMixer(AttentionMixer):
    """Window attention, and S state vectors that are updated through a gate from block to block."""

    kind: Literal["recurrent"] = Field("recurrent", description="window attention with a gated recurrent state")
    layers: tuple[int, ...] | None = Field(
        (-3,),
        description="layers that use it; negative indices count from the end; unset: all that no other section names",
    )
    states: PositiveInt = Field(512, description="number of state vectors [S]")
    cell: Literal["skip", "single", "dual"] = Field(
        "skip", description="recurrent cell: the paper's skip, single or dual"
    )
    gate: Literal["fixed", "lstm"] = Field("fixed", description="gate of the recurrent cell: fixed or LSTM")
    mlp_width: PositiveInt = Field(4096, description="hidden width of the cell's MLP; unused with cell=skip")
    clear_state: bool = Field(False, description="ablation: start every segment from the initial state")
    state_dtype: Literal["float32", "model"] = Field(
        "float32", description="type of the carried state: float32 even with bf16, or the model's type"
    )

    changeable: ClassVar[tuple[str, ...]] = (*AttentionMixer.changeable, "clear_state", "state_dtype")
    beside_weights: ClassVar[tuple[str, ...]] = ("clear_state", "state_dtype")
    statistics: ClassVar[dict[str, Statistic]] = {
        "state_rms": STATE_RMS,
        "state_max": STATE_MAX,
        "state_rank": STATE_RANK,
        "kept": Statistic("Share of the state that the gates keep", "share", "mean"),
    }
    watched: ClassVar[dict[str, Statistic]] = {
        "from_states": Statistic("Part of the layer's output that comes from the states", "share", "mean"),
        "gates_shut": Statistic("Gates that keep more than 90% of the state", "share", "mean"),
        "gates_open": Statistic("Gates that keep less than 10% of the state", "share", "mean"),
    }

    def crosses(self, model: "ModelConfig") -> bool:
        return True

    def states_fed_back(self) -> int:
        return self.states

    def states_seen(self, model: "ModelConfig") -> int:
        return super().states_seen(model) or self.states

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        state = MemoryField(
            "state",
            (self.states, model.width),
            dtype=self.state_dtype,
            split=0,
            is_split_by_sequence=True,
            start="cell.initial_state",
        )
        return state, *super().memory(model)

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        width, attended = model.width, model.heads * model.head_dim
        yield from super().parameters(model)
        yield from (Matrix(self.states, width), Matrix(self.states, width), Matrix(width))
        yield Matrix(4 * attended, width, True, 4)
        yield from (Matrix(model.heads, split=True), Matrix(model.heads, split=True))
        if self.cell != "single":
            yield from self._update_parameters(width, 2 * attended)
        if self.cell == "single":
            yield Matrix(self.mlp_width, 2 * attended, True)
        if self.cell == "dual":
            yield from (Matrix(width), Matrix(self.mlp_width, width, True))
        if self.cell != "skip":
            yield from self._update_parameters(width, self.mlp_width)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        width, attended = model.width, model.heads * model.head_dim
        state = 2 * width * 4 * attended + self._state_attention_flops(model)  # keys, values, queries of both kinds
        if self.cell == "skip":
            state += self._update_flops(width, 2 * attended)
        elif self.cell == "single":
            state += 2 * 2 * attended * self.mlp_width + self._update_flops(width, self.mlp_width)
        else:
            state += self._update_flops(width, 2 * attended) + 2 * width * self.mlp_width
            state += self._update_flops(width, self.mlp_width)
        return super().flops(model, executed) + self.states * state / model.window

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        of_states = self.states * self._state_attention_flops(model) / model.window
        return super().attention_flops(model, executed) + of_states

    def _state_attention_flops(self, model: "ModelConfig") -> int:
        """Of a state, which sees all states and all 2W tokens."""
        return 4 * (self.states + 2 * model.window) * model.heads * model.head_dim

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        tokens = super().activations(model, local)
        if self.positions == "rotary":  # states see the window's keys as they were before the rotation
            tokens += local.made(2 * local.tokens * model.heads // local.tensor * model.head_dim * local.itemsize)
        vectors, own, carried = self._sizes(model, local)
        # of each block: the state, normalised and projected, and keys and values for its tokens
        entering = carried + own * local.itemsize + (4 + 2) * vectors
        # keys, both queries and what they read; of the last block nothing, as gradients end with the segment
        read = 2 + 2 * (local.kernel == "triton")  # a kernel keeps it besides its copy
        leaving = (1 + 2 + read) * vectors + self._tail_activations(model, local, own, carried)
        return tokens + local.blocks * entering + (local.blocks - local.streams) * leaving

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        to_states = local.hidden(model.width) + self.of_states(model, local)
        # by then the backward pass of the cell is done
        of_cell = self.activations(model, local) - super().activations(model, local)
        return max(to_states, self._in_cell(model, local), super().in_backward(model, local) - of_cell)

    def _in_cell(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Bytes of the backward pass of the cell: keys and values of the window, made again, and a block's temporaries.

        Those are its logits, or the gradient of a weight, which is added to that of the other blocks.
        """
        heads, attended = model.heads // local.tensor, model.heads * model.head_dim // local.tensor
        windows = local.made_again(4 * local.tokens * attended * local.itemsize)
        least = heads * self.states * 2 * model.window
        logits = local.softmax(logits_at_once(local.kernel, local.streams * least, least))
        weight = 4 * attended * model.width * local.itemsize  # of the projections, the largest
        return local.hidden(model.width) + windows + weight + max(logits, 2 * weight)

    def between_blocks(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Of each block also the state that it leaves; the one that enters, projected, and of unit length."""
        if not model.feedback:
            return 0
        vectors, _, carried = self._sizes(model, local)
        passed = local.blocks * (carried + (4 + 3) * vectors) + (local.blocks - local.streams) * carried
        return super().between_blocks(model, local) + passed

    def _sizes(self, model: "ModelConfig", local: LocalSegment) -> tuple[int, int, int]:
        """Of a state on this rank: bytes of its keys, elements, and bytes as it is carried."""
        vectors = self.states * model.heads * model.head_dim // local.tensor * local.itemsize
        own = self.states * model.width // (local.tensor if local.sequence_parallel else 1)
        return vectors, own, own * (4 if self.state_dtype == "float32" else local.itemsize)

    def _tail_activations(self, model: "ModelConfig", local: LocalSegment, own: int, carried: int) -> int:
        """Bytes that the cell's tail keeps of a block, besides its input; `own`: elements of this rank's states."""
        update = (1 if self.gate == "fixed" else 3) * 4 * own  # new content, and the gates that depend on it
        hidden = self.states * self.mlp_width // local.tensor * local.itemsize
        if self.cell == "skip":
            return update
        if self.cell == "dual":
            return 2 * update + carried + own * local.itemsize + hidden
        # every column of the MLP needs the heads of all ranks
        gathered = 2 * self.states * model.heads * model.head_dim * local.itemsize if local.tensor > 1 else 0
        return update + hidden + gathered

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 180 + segment // model.window * {"skip": 228, "single": 256, "dual": 330}[self.cell]

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        mlp = {} if self.cell == "skip" else {f"{key}.mlp_width": self.mlp_width}
        return {**super().tensor_sizes(model, key), **mlp}

    def sequence_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.states": self.states}

    def summary(self, model: "ModelConfig") -> str:
        return f"{self.cell} cell, {self.gate} gate, {self.states} states"

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        from brt_dist.model.reference_names import Same, cell_names

        yield from super().reference_names(model, layer)
        yield "cell.initial_state", Same((f"transformer{layer}/recurrent_initial_state",))
        for name, rule in cell_names(f"transformer{layer}/recurrent_tbase", self.cell, self.gate, model.heads):
            yield f"cell.{name}", rule

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.recurrent_attention import RecurrentAttention

        return RecurrentAttention(self, model, index, parallel)

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.recurrent_attention import RecurrentAttention
        from brt_dist.model.window_decoding import RecurrentDecoder

        return RecurrentDecoder(cast(RecurrentAttention, module))

    def _update_parameters(self, width: int, inputs: int) -> Iterator[Matrix]:
        yield Matrix(width, inputs, True)
        if self.gate == "lstm":
            yield Matrix(2 * width, inputs, True, 2)
            yield Matrix(width)
        yield Matrix(width)

    def _update_flops(self, width: int, inputs: int) -> int:
        """The output map, and with an LSTM gate its two kernels."""
        return 2 * inputs * width * (3 if self.gate == "lstm" else 1)
