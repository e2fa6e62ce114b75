"""Window attention beside a recurrent state: the vertical and the horizontal direction of a recurrent layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window
from brt_dist.model.cell import RecurrentCell
from brt_dist.model.dropout import Dropout
from brt_dist.model.gates import FixedGate, LSTMGate
from brt_dist.model.linear import RowLinear
from brt_dist.model.memory import Memory
from brt_dist.model.sequence import gathered
from brt_dist.model.window_attention import ProjectedState, TokenHeads, WindowAttention

if TYPE_CHECKING:
    from brt_dist.model.mixers.recurrent import RecurrentMixer


class RecurrentAttention(WindowAttention):
    """Attention whose tokens also attend to a recurrent state, as it was before their block.

    Only the state's own path is sequential over the blocks (:class:`RecurrentCell`); projections and attention of the
    tokens run for all blocks at once.
    """

    laid_out_last = ("cell",)

    def __init__(
        self, settings: "RecurrentMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__(settings, model, index, parallel)
        self.cell = RecurrentCell(settings, model, parallel)
        self._clears_state = settings.clear_state

    def mix(
        self,
        heads: TokenHeads,
        window: Window,
        memory: Memory,
        starts: Tensor,
        dropout: Dropout | None,
        fed_back: ProjectedState | None,
    ) -> tuple[list[Tensor], Memory]:
        attended = [self.tokens.to_tokens(heads, window, dropout)]
        scanned = self.cell(memory["state"], self._state_starts(starts), window, fed_back)
        attended.append(self.tokens.to_states(heads, scanned.keys, scanned.values))
        return attended, {"state": scanned.state}

    def enter(self, memory: Memory, starts: Tensor, block: int) -> ProjectedState:
        """The state that enters a block, for all layers to attend to (`model.feedback`).

        Args:
            memory: after the block before.
            starts: (b, t) bool of the whole segment.
            block: number of the block in the segment.
        """
        projected: ProjectedState = self.cell(memory["state"], self._state_starts(starts)[:, block : block + 1])
        return projected

    def statistics(self, memories: Sequence[Memory]) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the layer's statistics, see `RecurrentMixer.statistics`."""
        for memory in memories:
            yield "state_rms", memory["state"].double()
            yield "state_max", memory["state"].double()
            yield "state_rank", effective_rank(self._whole(memory["state"]))
        for gate, offset in self._gates():
            # how much an LSTM gate keeps of the state depends on its input; this is its share without any
            yield "kept", torch.sigmoid(gate.detach().double() + offset)

    def statistics_parameters(self) -> list[nn.Parameter]:
        """Parameters that `statistics` reads; gather them first if they are sharded."""
        return [gate for gate, _ in self._gates()]

    def _gates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Bias and offset of what each gate keeps; see `gates.py`."""
        for name, parameter in self.cell.named_parameters():
            if name.endswith("gate.bias"):
                yield parameter, 0.0
            elif name.endswith("gate.forget_bias"):
                yield parameter, 1.0

    def watch(self, tell: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        """Report what `RecurrentMixer.watched` declares for every forward pass until the handles are removed.

        Attention to tokens and attention to states are two softmaxes, so there is no mass that they share; what they
        share is the layer's output, so the statistic is the part of each token's length that comes from the states.
        """

        def parts(merge: RowLinear, given: tuple[Tensor]) -> None:
            heads = given[0].detach().unflatten(-1, (-1, 2, self.tokens.model.head_dim))
            tokens, states = heads.clone(), heads.clone()
            tokens[..., 1, :], states[..., 0, :] = 0, 0
            of_tokens, of_states = (merge.forward(kind.flatten(-3)).double().norm(dim=-1) for kind in (tokens, states))
            tell("from_states", of_states / (of_tokens + of_states).clamp_min(torch.finfo(torch.float64).tiny))

        def gates(kept: Tensor) -> None:
            tell("gates_shut", kept > 0.9)
            tell("gates_open", kept < 0.1)

        handles = [self.tokens.merge.register_forward_pre_hook(parts)]
        gate_modules = (module for module in self.cell.modules() if isinstance(module, FixedGate | LSTMGate))
        return [*handles, *(gate.watch(gates) for gate in gate_modules)]

    def _whole(self, state: Tensor) -> Tensor:
        """A state (b, S, D) with those of all ranks, which under sequence parallel share them."""
        return gathered(state.transpose(0, 1)).transpose(0, 1) if self.cell.is_split else state

    def _state_starts(self, starts: Tensor) -> Tensor:
        """Blocks (b, t) that the initial state enters: where documents start, and the first one with `clear_state`."""
        if not self._clears_state:
            return starts
        return torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)


def effective_rank(states: Tensor) -> Tensor:
    """How many directions the vectors of a state use: (sum of σ²)² / sum of σ⁴ of its singular values σ.

    Args:
        states: (b, S, D).

    Returns:
        (b,) between 1, where all vectors are multiples of one, and min(S, D); 0 for a state of zeros.
    """
    products = states.double() @ states.double().transpose(1, 2)
    total = products.diagonal(dim1=1, dim2=2).sum(1)
    return total.square() / products.square().sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
