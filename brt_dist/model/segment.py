"""Reading a segment: the way through all layers, at once or, with feedback, block by block."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.cell import Entered, state_starts
from brt_dist.model.dropout import Dropout
from brt_dist.model.layers import RecurrentLayer
from brt_dist.model.memory import LayerMemory, carried


class Network(NamedTuple):
    """The modules of a whole model, and how they are called."""

    config: ModelConfig
    embedding: Any
    """tokens (b, N) -> (N, b, D), and `logits` back"""
    layers: Sequence[nn.Module]
    final_norm: nn.Module
    call: Callable[..., Any] = lambda module, *arguments: module(*arguments)
    """call(layer, *arguments); recompute comes in here"""


def read_segment(
    network: Network, tokens: Tensor, memory: Sequence[LayerMemory], starts: Tensor, dropout: Dropout | None
) -> tuple[Tensor, list[LayerMemory]]:
    """Tokens (b, N) -> this rank's logits (N, b, V/tp), and the memory for the next segment, without gradient.

    With feedback every layer attends to a state that the layers above it made of the blocks before, so the whole
    stack runs on a block before it runs on the next.  Gradients run through all of it.

    Args:
        memory: of each layer, from the segment before.
        starts: (b, N/W) bool, whether a document starts with the block.
    """
    if network.config.feedback:
        logits, after = _block_by_block(network, tokens, memory, starts, dropout)
    else:
        logits, after = _pass(network, tokens, memory, starts, dropout, [None] * len(memory))
    return logits, [carried(layer) for layer in after]


def _pass(
    network: Network,
    tokens: Tensor,
    memory: Sequence[LayerMemory],
    starts: Tensor,
    dropout: Dropout | None,
    entered: Sequence[Entered | None],
) -> tuple[Tensor, list[LayerMemory]]:
    x, after = network.embedding(tokens), []
    for layer, remembered, state in zip(network.layers, memory, entered, strict=True):
        x, left = network.call(layer, x, remembered, starts, dropout, state)
        after.append(left)
    return network.embedding.logits(network.final_norm(x, dropout)), after


def _block_by_block(
    network: Network, tokens: Tensor, memory: Sequence[LayerMemory], starts: Tensor, dropout: Dropout | None
) -> tuple[Tensor, list[LayerMemory]]:
    window, initial = network.config.window, state_starts(network.config, starts)
    logits, after = [], list(memory)
    for block in range(starts.shape[1]):
        here, first = slice(block, block + 1), block * window
        masks = None if dropout is None else dropout.at(first)
        entered = _entered(network, after, initial[:, here])
        scores, after = _pass(network, tokens[:, first : first + window], after, starts[:, here], masks, entered)
        logits.append(scores)
    return torch.cat(logits), after


def _entered(network: Network, memory: Sequence[LayerMemory], initial: Tensor) -> list[Entered]:
    """The state that each layer attends to in the next block: its own, or that of the last recurrent layer."""
    own = {
        index: cast(
            Entered, network.call(cast(RecurrentLayer, network.layers[index]).cell, memory[index].state, initial)
        )
        for index in network.config.recurrent_indices()
    }
    fed_back = own[max(own)]
    return [own.get(index, fed_back) for index in range(network.config.layers)]
