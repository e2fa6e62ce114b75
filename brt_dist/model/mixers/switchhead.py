"""SwitchHead attention (arXiv 2312.07987), the mixer of MoEUT (2405.16039): values and outputs are mixtures of experts.

With n = LN(x), head h has q = n Q_h and k = n K_h, each times E^-1/4 and the first half of it rotated, and

    v_h = sum over the chosen experts e of sigmoid(n s_he) x V_he
    y   = sum over heads and over the chosen experts e of sigmoid(n r_he) a_h O_he      a_h: what head h read

The norm feeds queries, keys and routers only (peri-layernorm).  A token sees itself and the W - 1 tokens before it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.mixers.base import MemoryField, Mixer

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig


class SwitchHeadMixer(Mixer):
    """Sliding-window attention whose heads choose experts for values and outputs."""

    kind: Literal["switchhead"] = Field(
        "switchhead", description="window attention whose values and outputs are mixtures of experts"
    )
    experts: PositiveInt = Field(
        8, description="experts of each head; 1: plain values and outputs, and a gate on each head"
    )
    chosen: PositiveInt = Field(2, description="experts of each head that a token uses; unused with experts=1")
    entropy: NonNegativeFloat = Field(
        0.001, description="weight of the regulariser: minus the entropy of the experts that a stream uses; 0: none"
    )

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        cache = (model.window, model.heads, model.head_dim)
        return MemoryField("keys", cache, split=1, is_cache=True), MemoryField("values", cache, split=1, is_cache=True)

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        attended, experts = model.heads * model.head_dim, self.experts
        yield from (Matrix(model.width), Matrix(model.width))
        yield Matrix(2 * attended, model.width, True, 2)
        for _ in range(1 if experts == 1 else 2):
            yield Matrix(model.heads * experts, model.width, True, experts)
        for _ in range(2):
            yield Matrix(attended * experts, model.width, True, experts)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        attended, used = model.heads * model.head_dim, min(self.chosen, self.experts)
        routers = (1 if self.experts == 1 else 2) * model.heads * self.experts
        projected = 2.0 * model.width * (2 * attended + routers + 2 * used * attended)
        return projected + self.attention_flops(model, executed)

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        return 4.0 * (2 * model.window if executed else model.window) * model.heads * model.head_dim

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, tokens, itemsize = model.heads // local.tensor, local.tokens, local.itemsize
        vectors = tokens * heads * model.head_dim * itemsize
        # keys and values of two blocks, queries, what was read; the bias that hides other documents
        kept = local.entered(model.width) + local.widened(model.width) + (4 + 2) * vectors + 8 * tokens * local.window
        kept += local.mask(model.width, model.dropout)
        if self.experts == 1:  # what was read times its gate; values are made of all tokens, and are no norm's
            gathered = tokens * model.width * itemsize if local.sequence_parallel else 0
            return kept + vectors + tokens * heads * itemsize + gathered
        # inputs sorted by expert and results of both mixtures, values also after they are put back
        sorted_rows = self.chosen * (2 * tokens * heads * model.width * itemsize + 3 * vectors)
        scores = 4 * self.experts * (1 + (self.entropy > 0)) + self.chosen * (3 * 8 + itemsize)
        return kept + sorted_rows + 2 * tokens * heads * scores

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        heads, own = model.heads // local.tensor, local.hidden(model.width)
        rows = self.chosen * local.tokens * heads * model.width * local.itemsize
        logits = local.softmax(local.tokens * heads * 2 * model.window)
        if self.experts == 1:
            return own + max(logits, 2 * local.gathered(model.width))
        # by then the backward pass of the output's experts is done
        vectors = self.chosen * local.tokens * heads * model.head_dim * local.itemsize
        return own + max(logits - rows - vectors, 2 * rows)  # gradients of an expert's inputs, sorted and put back

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 190 if self.experts == 1 else 300 + 6 * model.heads * self.experts

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {"model.heads": model.heads}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: SwitchHead attends to no state of another layer; "
                "nearest: model.feedback=false"
            )
        if 1 < self.experts < self.chosen:
            yield f"{key}.chosen={self.chosen} of {key}.experts={self.experts}; nearest: {key}.chosen={self.experts}"

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.expert_layers import SwitchHead

        return SwitchHead(self, model, index, parallel)
