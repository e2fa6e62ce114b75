"""An LSTM (10.1162/neco.1997.9.8.1735) instead of attention: the models of arXiv 2112.09174, with carried state.

    i, f, g, o = x_t W + h_{t-1} U + bias
    c_t = sigmoid(f + 1) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)

h_t is added to the residual stream.  h and c start at zero with a document and are carried in float32.  Tokens are read
one after the other, so a segment takes as many steps as it has tokens.

Every element of h depends on all elements of the one before, so splitting h over tensor parallel ranks would cost a
collective per token; instead every rank computes all of it.
"""

from collections.abc import Iterable, Iterator, Sequence
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


class LSTMMixer(Mixer):
    """An LSTM as wide as the model."""

    kind: Literal["lstm"] = Field("lstm", description="an LSTM of the model's width, token after token")

    statistics: ClassVar[dict[str, Statistic]] = {"state_rms": STATE_RMS, "state_max": STATE_MAX}

    def memory(self, model: "ModelConfig") -> Sequence[MemoryField]:
        size = (model.width,)
        return MemoryField("hidden", size, dtype="float32"), MemoryField("cell", size, dtype="float32")

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        yield Matrix(model.width)
        yield from (Matrix(4 * model.width, model.width, matrices=4) for _ in range(2))
        yield Matrix(4 * model.width)

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        return 2.0 * 2 * 4 * model.width**2

    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        # of each token: the hidden state that enters, four gates, the cell before, and the new one's tanh
        steps = local.tokens * model.width * (local.itemsize + 6 * 4)
        return local.entered(model.width) + local.mask(model.width, model.dropout) + steps

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        # gradients of the two matrices, which are added up over tokens, and of one what a token adds
        return local.hidden(model.width) + 3 * 4 * model.width**2 * local.itemsize

    def operations(self, model: "ModelConfig", segment: int) -> int:
        return 60 + 37 * segment

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        if config.model.feedback:
            yield (
                f"model.feedback=true with {key}: an LSTM attends to no state of another layer; "
                "nearest: model.feedback=false"
            )

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        import torch
        from torch import nn

        from brt_dist.model.norms import RMSNorm
        from brt_dist.model.parameters import constant, declare, fan_in
        from brt_dist.model.regions import enter
        from brt_dist.model.sequence import own_part

        width, is_split = model.width, parallel.sequence_parallel

        class LSTM(nn.Module):
            """Whole on every tensor parallel rank; under sequence parallel it returns the rank's tokens."""

            def __init__(self) -> None:
                super().__init__()
                self.norm = RMSNorm(width)
                self.inputs = nn.Parameter(torch.empty(4 * width, width))
                self.recurrent = nn.Parameter(torch.empty(4 * width, width))
                self.bias = nn.Parameter(torch.empty(4 * width))
                declare(self.inputs, fan_in(), stacked=(4, width))
                declare(self.recurrent, fan_in(), stacked=(4, width))
                declare(self.bias, constant(0.0))

            def forward(
                self, x: "Tensor", memory: "Memory", starts: "Tensor", dropout: "Dropout | None", fed_back: None = None
            ) -> "tuple[Tensor, Memory]":
                x = self.norm(x)
                if dropout is not None:
                    x = dropout.activations(x, index, "attention input")
                if is_split:
                    x = enter(x, parallel)
                given = nn.functional.linear(x, self.inputs, self.bias)
                y, hidden, cell = lstm(given, self.recurrent, memory["hidden"], memory["cell"], starts)
                return own_part(y) if is_split else y, {"hidden": hidden, "cell": cell}

            def statistics(self, memories: "Sequence[Memory]") -> "Iterator[tuple[str, Tensor]]":
                for memory in memories:
                    yield "state_rms", memory["cell"].double()
                    yield "state_max", memory["cell"].double()

            def statistics_parameters(self) -> list[nn.Parameter]:
                return []

        return LSTM()

    def decoder(self, module: "nn.Module", model: "ModelConfig") -> "BlockDecoder":
        from brt_dist.model.stepping import Stepping

        return Stepping(module)


def lstm(
    given: "Tensor", recurrent: "Tensor", hidden: "Tensor", cell: "Tensor", starts: "Tensor"
) -> "tuple[Tensor, Tensor, Tensor]":
    """Read token after token.

    Args:
        given: (N, b, 4D), what the tokens give to the gates: input, forget, new content, output.
        recurrent: (4D, D), what the hidden state gives to them.
        hidden, cell: (b, D) before the first token, float32 or wider.
        starts: (b, N/W) bool; where true both are zero before the block.

    Returns:
        Outputs (N, b, D) in the type of `given`; hidden and cell after the last token.
    """
    import torch

    outputs = []
    for number, block in enumerate(given.chunk(starts.shape[1])):
        begins = starts[:, number, None]
        hidden, cell = hidden.masked_fill(begins, 0.0), cell.masked_fill(begins, 0.0)
        for token in block:
            gates = token.to(hidden.dtype) + (hidden.to(recurrent.dtype) @ recurrent.t()).to(hidden.dtype)
            into, keep, new, out = gates.chunk(4, -1)
            cell = torch.sigmoid(keep + 1) * cell + torch.sigmoid(into) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            outputs.append(hidden.to(given.dtype))
    return torch.stack(outputs), hidden, cell
