"""Activations of a pipeline stage: what its forwards keep for their backward, and what a backward needs besides.

The formulas of each kind are declared by the kinds (`Half.activations`).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.model.shapes import TILE_COLUMNS, TILE_TOKENS, padded_vocab

Recompute: TypeAlias = Literal["none", "attention", "layer"]


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of a layer for one micro-batch, on one rank.

    Attributes:
        kept: from forward to backward.
        full: what it keeps without recompute.
        workspace: what its backward needs besides: what is computed again, gradients and temporaries.
    """

    kept: int
    full: int
    workspace: int


def local_segment(config: Config) -> LocalSegment:
    """The segments of a micro-batch of `config` on one rank."""
    parallel = config.parallel
    return LocalSegment(
        streams=parallel.micro_batch,
        segment=config.data.segment,
        window=config.model.window,
        tensor=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel,
        itemsize=2 if config.run.precision == "bf16" else 4,
    )


def layer_activations(model: ModelConfig, layer: int, local: LocalSegment, recompute: Recompute) -> LayerActivations:
    """Of layer `layer` (from 0)."""
    mixer, ffn, seen, encoder = model.mixer_of(layer), model.ffn_of(layer), model.at(layer), model.encoder
    local = replace(local, segment=local.segment * seen.window // model.window, window=seen.window)
    of_ffn = ffn.activations(seen, local)
    full, again_given = mixer.activations(seen, local), local.hidden(model.width) + mixer.between_blocks(seen, local)
    if layer in encoder.shortened:
        before = encoder.shortening_activations(model, local, layer)
        full, again_given = full + before, again_given + before
    kept_again = again_given
    if encoder.crosses(layer):  # run again, it keeps the tokens that enter it, and what it reads of the encoder
        source = encoder.left(model, local).hidden(model.width)
        full, again_given = full + encoder.cross_activations(model, local), again_given + source
        kept_again = again_given + local.hidden(model.width)
    full += of_ffn
    kept = {"none": full, "attention": kept_again + of_ffn, "layer": again_given}[recompute]
    again = 0 if recompute == "none" else full
    calls = local.segment // local.window if model.feedback else 1  # blocks run, and are run again, one by one
    return LayerActivations(kept, full, (again + round(mixer.backward_share * full)) // calls)


def head_activations(model: ModelConfig, local: LocalSegment) -> int:
    """Bytes that the last norm and the loss keep of a micro-batch: their inputs; no logits."""
    return 2 * local.hidden(model.width) + local.mask(model.width, model.dropout)


def logits_workspace(model: ModelConfig, local: LocalSegment) -> int:
    """Bytes at most while the loss of a micro-batch is computed backward.

    A tile of logits and its gradients, the gradients of hidden states in float32, and that of the token embedding,
    which is copied to float32 when the tiles are done.
    """
    table = padded_vocab(model.vocab_size or 0, local.tensor) // local.tensor
    # logits, their copy in float32, and gradients of this tile and the one before; in float32 all but the last are one
    each = 4 + 3 * local.itemsize if local.itemsize < 4 else 2 * local.itemsize
    tile = min(TILE_TOKENS, local.tokens) * min(TILE_COLUMNS, table) * each
    gathered = local.tokens * model.width * local.itemsize if local.sequence_parallel else 0
    of_table = table * model.width * local.itemsize
    return of_table + gathered + local.tokens * model.width * 4 + max(tile, of_table * 2 if local.itemsize < 4 else 0)
