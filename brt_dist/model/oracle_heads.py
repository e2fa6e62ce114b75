"""Oracle heads (arXiv 2112.09174): from a hidden state, the state and the stack of the machine of a language.

They show whether a mixer's hidden state holds what a pushdown machine would hold, and training with them makes it so.

* Forced: slices of the hidden state are assigned, one to the machine's state and one to each slot of its stack; all
  slots are read by one network.
* Latent: a separate network for each of them reads the whole hidden state.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.data.objectives.base import UNKNOWN
from brt_dist.model.norms import widened
from brt_dist.model.parameters import constant, declare, fan_in
from brt_dist.model.routing import with_loss


class OracleLabels(NamedTuple):
    """What the heads should predict in a micro-batch."""

    classes: Tensor
    """(b, N, 1 + slots) int64: the state, and the stack from the bottom; UNKNOWN where there is nothing to predict"""
    share: float
    """weight of a token, so that the average over data parallel ranks is the mean over all tokens with labels"""


class OracleLosses(NamedTuple):
    """Mean nats over the positions that count."""

    state: Tensor
    stack: Tensor


class OracleHeads(nn.Module):
    """Networks with one hidden layer of sigmoids.

    Args:
        width: of the hidden state [D]; forced, it must hold 1 + slots slices of at least one channel.
        states: number of classes of the machine's state, padding included.
        slots: of the stack.
        symbols: number of classes of a slot, the empty one included.
        decomposition: see the module.
        hidden: width of the networks' hidden layer.
        weight: of their losses in the gradient of the network that they read (see `supervised`).
    """

    def __init__(
        self,
        width: int,
        states: int,
        slots: int,
        symbols: int,
        decomposition: Literal["forced", "latent"],
        hidden: int = 64,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.slots, self.decomposition, self.weight = slots, decomposition, weight
        size = width // (1 + slots) if decomposition == "forced" else width
        if not size:
            raise ValueError(f"a hidden state of {width} channels cannot be cut into {1 + slots} slices")
        self.slice = size
        self.state = network(size, hidden, states)
        count = 1 if decomposition == "forced" else slots
        self.stack = nn.ModuleList(network(size, hidden, symbols) for _ in range(count))

    @classmethod
    def of(cls, model: ModelConfig) -> "OracleHeads":
        """The heads of a model that is trained with an oracle."""
        oracle, (states, symbols) = model.oracle, model.oracle.classes
        return cls(model.width, states, oracle.slots, symbols, oracle.decomposition, oracle.hidden, oracle.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (..., D) -> logits (..., states) and (..., slots, symbols)."""
        if self.decomposition == "latent":
            return self.state(x), torch.stack([slot(x) for slot in self.stack], -2)
        slices = x[..., : self.slice * (1 + self.slots)].unflatten(-1, (1 + self.slots, self.slice))
        return self.state(slices[..., 0, :]), self.stack[0](slices[..., 1:, :])

    def losses(self, x: Tensor, states: Tensor, stacks: Tensor, mask: Tensor) -> OracleLosses:
        """Cross entropies with the labels.

        Args:
            x: (..., D).
            states: (...) classes.
            stacks: (..., slots) classes; 0 for an empty slot.
            mask: (...) bool, positions that count.
        """
        of_state, of_stack = self(x)
        return OracleLosses(
            functional.cross_entropy(of_state[mask], states[mask]),
            functional.cross_entropy(of_stack[mask].flatten(0, 1), stacks[mask].flatten()),
        )

    def supervised(self, x: Tensor, labels: OracleLabels) -> Tensor:
        """`x` (N, b, D), whose backward also begins those of the heads' losses.

        With a weight of 0 the heads learn, but `x` gets no gradient from them.
        """
        of_state, of_stack = self(x if self.weight else x.detach())
        if not torch.is_grad_enabled():
            return x
        classes = labels.classes.transpose(0, 1)
        loss = _nats(of_state, classes[..., 0]) + _nats(of_stack, classes[..., 1:]) / self.slots
        return with_loss(x, loss, (self.weight or 1.0) * labels.share)


def _nats(logits: Tensor, classes: Tensor) -> Tensor:
    """Sum over the known classes (...) of their cross entropies with logits (..., C)."""
    return functional.cross_entropy(
        widened(logits).flatten(0, -2), classes.flatten(), ignore_index=UNKNOWN, reduction="sum"
    )


class UncertaintyWeights(nn.Module):
    """Learned weights of several losses: sum of L / (2 (|s| + 0.1)²) + log(|s| + 0.1), s one number for each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(count))

    def forward(self, losses: Tensor) -> Tensor:
        spread = self.scale.abs() + 0.1
        return (0.5 * losses / spread.square() + spread.log()).sum()


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, outputs))
    for name, parameter in layers.named_parameters():
        declare(parameter, fan_in() if name.endswith("weight") else constant(0.0))
    return layers
