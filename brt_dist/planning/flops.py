"""Floating point operations of a model: two for each multiplication in a matrix product; the rest is left out.

Counts what the model needs (arXiv 2204.02311, appendix B), not what is executed: a token attends to W tokens, although
blocks compute products with all 2W that some token of the block sees; recompute is not counted.
"""

from brt_dist.config.schema import ModelConfig

TRAINING = 3  # a backward pass has twice the products of a forward pass


def forward_flops(model: ModelConfig, executed: bool = False) -> float:
    """FLOPs of one token through the whole model.  `vocab_size` must be set.

    executed: with the masked half of the window, which the products of blocks compute too.
    """
    head = 2.0 * model.width * (model.vocab_size or 0)
    if model.objective == "oracle":
        head += model.oracle.flops(model)
    return head + sum(sum(layer_flops(model, layer, executed)) for layer in range(model.depth))


def layer_flops(model: ModelConfig, layer: int, executed: bool = False) -> tuple[float, float]:
    """FLOPs of a layer for each token of a segment: of its mixer and cross-attention, and of its FFN.

    A layer of an encoder may read fewer tokens than the segment has.
    """
    seen = model.at(layer)
    share = seen.window / model.window
    crossing = model.encoder.cross_flops(model) if model.encoder.crosses(layer) else 0.0
    mixer, ffn = model.mixer_of(layer).flops(seen, executed), model.ffn_of(layer).flops(seen, executed)
    return share * mixer + crossing, share * ffn
