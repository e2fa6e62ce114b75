"""The FFN of MoEUT (arXiv 2405.16039), sigma-MoE (2310.10837): y = sum over chosen experts of score_e relu(x K_e) V_e.

The scores are sigmoid(LN(x) R^T) and the largest are chosen.  The norm feeds the router alone (peri-layernorm): experts
see the hidden state as it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.local_segment import LocalSegment
from brt_dist.model.ffn.base import FFN

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig


class SigmaMoEFFN(FFN):
    """Each token chooses a few of many small experts."""

    kind: Literal["sigma_moe"] = Field("sigma_moe", description="each token goes through a few of many small experts")
    experts: PositiveInt = Field(128, description="number of experts [E]")
    chosen: PositiveInt = Field(12, description="experts per token [k]")
    expert_width: PositiveInt = Field(128, description="hidden width of an expert")
    entropy: NonNegativeFloat = Field(
        0.01, description="weight of the regulariser: minus the entropy of the experts that a stream uses; 0: none"
    )

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield from (Matrix(model.width), Matrix(model.width))
        yield Matrix(self.experts, model.width)
        rows = self.expert_width * self.experts
        yield from (Matrix(rows, model.width, True, self.experts), Matrix(rows, model.width, True, self.experts))

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 2.0 * model.width * self.experts + 4.0 * self.chosen * model.width * self.expert_width

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        width, tokens, choices = model.width, local.tokens, local.tokens * self.chosen
        # inputs sorted by expert and results, before and after they are put back; hidden units likewise
        values = 3 * choices * (width + self.expert_width // local.tensor) + tokens * width + choices
        numbers = 4 * local.own_tokens * width + 4 * tokens * self.experts * (1 + (self.entropy > 0)) + 5 * 8 * choices
        return values * local.itemsize + numbers + local.mask(width, model.dropout)

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gradients of the experts' inputs, sorted and put back
        rows = 2 * local.tokens * self.chosen * model.width * local.itemsize
        return local.hidden(model.width) + rows + local.gathered(model.width)

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 60 + 6 * self.experts

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        return {f"{key}.expert_width": self.expert_width}  # every rank has a part of each expert

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if self.chosen > self.experts:
            yield (
                f"{key}.chosen={self.chosen} is more than {key}.experts={self.experts}; "
                f"nearest: {key}.chosen={self.experts}"
            )

        if config.model.feedback and self.entropy:
            yield (
                f"model.feedback=true with {key}.entropy={self.entropy}: the regulariser is of all tokens of a "
                f"segment, and with feedback a layer sees one block at a time; "
                f"nearest: {key}.entropy=0, or model.feedback=false"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        from brt_dist.model.expert_layers import SigmaMoE

        return SigmaMoE(self, model, index, parallel)
