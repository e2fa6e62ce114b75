"""Activations of a pipeline stage: what forward passes keep for the backward pass, and what that needs besides.

The formulas of each kind are declared by the kinds (`Half.activations`).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.model.shapes import TILE_COLUMNS, padded_vocab
from brt_dist.planning.execution import WITHOUT_KERNELS, Execution

Recompute: TypeAlias = Literal["none", "attention", "layer"]


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of a layer for one micro-batch, on one rank.

    Attributes:
        kept: from forward to backward.
        made: what it would keep if the backward pass made nothing again.
        workspace: the most that its backward pass needs besides: what is recomputed, gradients and temporaries.
    """

    kept: int
    made: int
    workspace: int


def local_segment(config: Config, execution: Execution = WITHOUT_KERNELS) -> LocalSegment:
    """The segments of a micro-batch of `config` on one rank."""
    parallel = config.parallel
    itemsize = 2 if config.run.precision == "bf16" else 4
    return LocalSegment(
        streams=parallel.micro_batch,
        segment=config.data.segment,
        window=config.model.window,
        tensor=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel,
        itemsize=itemsize,
        kernel=execution.kernel(config.model.attention_kernel, itemsize),
    )


def layer_activations(model: ModelConfig, layer: int, local: LocalSegment, recompute: Recompute) -> LayerActivations:
    """Activations of layer `layer` (from 0)."""
    mixer, ffn, seen, encoder = model.mixer_of(layer), model.ffn_of(layer), model.at(layer), model.encoder
    local = replace(local, segment=local.segment * seen.window // model.window, window=seen.window)
    keeping = replace(local, remakes=False)
    made = _mixing(model, layer, keeping) + ffn.activations(seen, keeping)
    of_ffn = ffn.activations(seen, keeping if recompute == "layer" else local)
    local = local if recompute == "none" else keeping
    of_mixer = _mixing(model, layer, local)
    again_given = local.hidden(model.width) + mixer.between_blocks(seen, local)
    if layer in encoder.shortened:
        again_given += encoder.shortening_activations(model, local, layer)
    kept_again = again_given
    if encoder.crosses(layer):  # with recompute it keeps the tokens that enter it, and what it reads from the encoder
        again_given += encoder.left(model, local).hidden(model.width)
        kept_again = again_given + local.hidden(model.width)
    full = of_mixer + of_ffn
    kept = {"none": full, "attention": kept_again + of_ffn, "layer": again_given}[recompute]
    # the FFN's backward pass comes first; everything is there then, except what recompute of attention makes again
    least = local.hidden(model.width) + local.of_norm(model.width)
    in_ffn = (kept if recompute == "attention" else full) + max(ffn.in_backward(seen, local), least)
    in_mixer = of_mixer + max(mixer.in_backward(seen, local), least)
    calls = local.segment // local.window if model.feedback else 1  # blocks run, and are recomputed, one by one
    return LayerActivations(kept, made, (max(in_ffn, in_mixer) - kept) // calls)


def _mixing(model: ModelConfig, layer: int, local: LocalSegment) -> int:
    """Bytes that a layer's mixer keeps, with what an encoder or a decoder has besides."""
    found, encoder = model.mixer_of(layer).activations(model.at(layer), local), model.encoder
    if layer in encoder.shortened:
        found += encoder.shortening_activations(model, local, layer)
    return found + (encoder.cross_activations(model, local) if encoder.crosses(layer) else 0)


def head_activations(model: ModelConfig, local: LocalSegment) -> int:
    """Bytes that the last norm and the loss keep of a micro-batch: their inputs; no logits."""
    return 2 * local.hidden(model.width) + local.mask(model.width, model.dropout)


def table_gradient(model: ModelConfig, local: LocalSegment) -> int:
    """Bytes of the gradient of a rank's rows of the token embedding."""
    return padded_vocab(model.vocab_size or 0, local.tensor) // local.tensor * model.width * local.itemsize


def logits_workspace(model: ModelConfig, local: LocalSegment, execution: Execution = WITHOUT_KERNELS) -> int:
    """Most bytes in use during the backward pass of a micro-batch's loss.

    A tile of logits and its gradients, the gradients of hidden states and of the tile's rows of the embedding, and the
    gradient of the embedding.
    """
    rows = padded_vocab(model.vocab_size or 0, local.tensor) // local.tensor
    is_narrow, columns, tokens = local.itemsize < 4, min(TILE_COLUMNS, rows), min(execution.tile_tokens, local.tokens)
    hidden, of_rows, is_only = local.tokens * model.width, 0, tokens == local.tokens and columns == rows
    # logits, their copy in float32, and gradients of this tile and the one before; in float32 all but the last are one
    each = (2 if is_narrow else 1) * local.itemsize + (4 if is_narrow else 0) + (0 if is_only else local.itemsize)
    tile = tokens * columns * each
    # gradients are summed over tiles: of hidden states over rows of the embedding, of those rows over tokens
    of_hidden = hidden * (4 if rows > columns else local.itemsize)
    if not is_only:
        of_rows = (
            columns * model.width * (4 + local.itemsize if is_narrow and local.tokens > tokens else local.itemsize)
        )
    if not execution.has_kernels:  # hidden states times the gradients of their losses
        of_hidden += hidden * local.itemsize
    return table_gradient(model, local) + local.gathered(model.width) + of_hidden + of_rows + tile
