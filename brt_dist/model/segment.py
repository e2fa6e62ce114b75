"""Reading a segment: the way through all layers, at once or, with feedback, block by block.

In an encoder-decoder, the first layers read a source; the others read the tokens and attend to the encoded source.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.dropout import Dropout
from brt_dist.model.memory import Memory, carried
from brt_dist.model.oracle_heads import OracleLabels
from brt_dist.model.positions import positioned
from brt_dist.model.recompute import Calls
from brt_dist.model.transforms import shortened


class Network(NamedTuple):
    """The modules of a whole model, and how they are called."""

    config: ModelConfig
    embedding: Any
    """tokens (b, N) -> (N, b, D), and `logits` or `losses` back"""
    layers: Sequence[nn.Module]
    final_norm: nn.Module
    calls: Calls


def read_segment(
    network: Network,
    tokens: Tensor,
    memory: Sequence[Memory],
    starts: Tensor,
    dropout: Dropout | None,
    target: Tensor | None = None,
    source: Tensor | None = None,
    labels: OracleLabels | None = None,
    counted: Tensor | None = None,
) -> tuple[Tensor, list[Memory]]:
    """Tokens (b, N) -> this rank's logits (N, b, V/tp), and the memory for the next segment, without gradient.

    With a target (b, N), nats per token (b, N) instead of logits; with `counted` (b, N) as well, the sum of those that
    count.

    With feedback every layer attends to a state that the layers above it made of the blocks before, so the whole
    stack runs on a block before it runs on the next.  Gradients run through all of it.

    Args:
        memory: of each layer, from the segment before.
        starts: (b, N/W) bool, whether a document starts with the block.
        source: (b, W), what the encoder of an encoder-decoder reads.
        labels: of the heads of an oracle.

    Raises:
        ConfigError: the model has an encoder and there is no source, or the other way round.
    """
    if (source is not None) != (network.config.encoder.layers > 0):
        raise ConfigError("a model with an encoder (model.encoder.layers), and no other, reads a source")
    if network.config.feedback:
        scores, after = _block_by_block(network, tokens, memory, starts, dropout, target, labels)
        if counted is not None:
            scores = scores.masked_fill(~counted.transpose(0, 1), 0.0).sum()
    else:
        fed_back = [None] * len(memory)
        scores, after = _pass(
            network, tokens, memory, starts, dropout, fed_back, target, source, labels, counted=counted
        )
    is_of_tokens = target is not None and counted is None
    return scores.transpose(0, 1) if is_of_tokens else scores, [carried(layer) for layer in after]


def _pass(
    network: Network,
    tokens: Tensor,
    memory: Sequence[Memory],
    starts: Tensor,
    dropout: Dropout | None,
    fed_back: Sequence[Any],
    target: Tensor | None,
    source: Tensor | None = None,
    labels: OracleLabels | None = None,
    counted: Tensor | None = None,
) -> tuple[Tensor, list[Memory]]:
    x, config, encoded = network.embedding(tokens), network.config, None
    first = config.encoder.layers
    after: list[Memory] = [{} for _ in range(first)]  # an encoder carries nothing
    if source is not None:
        x, encoded = positioned(x), _encoded(network, source, dropout)
    for index in range(first, len(memory)):
        draws = None if dropout is None else dropout.in_repeat(index // config.layers, config.repeat)
        layer, remembered, state = network.layers[index], memory[index], fed_back[index]
        x, left = network.calls.layer(layer, x, remembered, starts, draws, state, network.calls.mixer, encoded)
        after.append(left)
    x = network.final_norm(x, dropout, labels)
    if target is not None and counted is not None:
        return network.embedding.summed_loss(x, target.transpose(0, 1), counted.transpose(0, 1)), after
    if target is not None:
        return network.embedding.losses(x, target.transpose(0, 1)), after
    return network.embedding.logits(x), after


def _encoded(network: Network, source: Tensor, dropout: Dropout | None) -> Tensor:
    """The encoded source (b, W) -> (M, b, D); shortened between layers as in arXiv 2305.15099."""
    encoder, window = network.config.encoder, network.config.window
    x, starts = positioned(network.embedding(source)), torch.ones_like(source[:, :1], dtype=torch.bool)
    for index, layer in enumerate(network.layers[: encoder.layers]):
        if index in encoder.shortened:
            x = shortened(x.transpose(0, 1), encoder.length(window, index)).transpose(0, 1)
        x, _ = network.calls.layer(layer, x, {}, starts, dropout, None, network.calls.mixer)
    return x


def _block_by_block(
    network: Network,
    tokens: Tensor,
    memory: Sequence[Memory],
    starts: Tensor,
    dropout: Dropout | None,
    target: Tensor | None,
    labels: OracleLabels | None = None,
) -> tuple[Tensor, list[Memory]]:
    window = network.config.window
    scores, after = [], list(memory)
    for block in range(starts.shape[1]):
        here, first = slice(block, block + 1), block * window
        masks = None if dropout is None else dropout.at(first)
        fed_back = _fed_back(network, after, starts, block)
        read, wanted = (None if ids is None else ids[:, first : first + window] for ids in (tokens, target))
        told = labels and labels._replace(classes=labels.classes[:, first : first + window])
        score, after = _pass(network, cast(Tensor, read), after, starts[:, here], masks, fed_back, wanted, labels=told)
        scores.append(score)
    return torch.cat(scores), after


def _fed_back(network: Network, memory: Sequence[Memory], starts: Tensor, block: int) -> list[Any]:
    """What each layer attends to in a block: its own state, or that of the last layer that feeds back."""
    own = {
        index: network.calls.enter(cast(Any, layer).mixer.enter, memory[index], starts, block)
        for index, layer in enumerate(network.layers)
        if network.config.mixer_of(index).states_fed_back()
    }
    last = own[max(own)]
    return [own.get(index, last) for index in range(len(network.layers))]
