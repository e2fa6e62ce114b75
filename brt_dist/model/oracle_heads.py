"""Oracle heads (arXiv 2112.09174): from a hidden state, the state and the stack of the machine of a language.

They show whether any mixer's hidden state holds what a pushdown machine would hold, and training with them makes it so.

* Forced: slices of the hidden state are assigned, one to the machine's state and one to each slot of its stack; all
  slots are read by one network.
* Latent: a network of its own for each of them reads the whole hidden state.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


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
    """

    def __init__(
        self,
        width: int,
        states: int,
        slots: int,
        symbols: int,
        decomposition: Literal["forced", "latent"],
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.slots, self.decomposition = slots, decomposition
        size = width // (1 + slots) if decomposition == "forced" else width
        if not size:
            raise ValueError(f"a hidden state of {width} channels cannot be cut into {1 + slots} slices")
        self.slice = size
        self.state = network(size, hidden, states)
        count = 1 if decomposition == "forced" else slots
        self.stack = nn.ModuleList(network(size, hidden, symbols) for _ in range(count))

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


class UncertaintyWeights(nn.Module):
    """Learned weights of several losses: sum of L / (2 (|s| + 0.1)²) + log(|s| + 0.1), s one number for each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(count))

    def forward(self, losses: Tensor) -> Tensor:
        spread = self.scale.abs() + 0.1
        return (0.5 * losses / spread.square() + spread.log()).sum()


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, outputs))
