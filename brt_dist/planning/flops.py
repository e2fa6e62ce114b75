"""Floating point operations of a model: two for each multiplication in a product of matrices, the rest left out.

Counted is what the model asks for (arXiv 2204.02311, appendix B), not what is executed: a token attends to W tokens,
although blocks compute products with all 2W that some token of the block sees; recompute is not counted.
"""

from brt_dist.config.schema import ModelConfig

TRAINING = 3  # a backward has twice the products of a forward


def forward_flops(model: ModelConfig, executed: bool = False) -> float:
    """Of one token through the whole model.  `vocab_size` must be set.

    executed: with the masked half of the window, which the products of blocks compute too.
    """
    attended = model.heads * model.head_dim
    recurrent = model.recurrent_indices()
    seen = 2 * model.window if executed else model.window
    total = 2.0 * model.width * (model.vocab_size or 0)
    for layer in range(model.layers):
        crosses = layer in recurrent or model.feedback
        kinds = 1 + crosses
        total += 2 * model.width * (2 + kinds) * attended  # keys, values, and queries of each kind
        total += 4 * seen * attended  # logits and values
        total += 4 * model.states * attended if crosses else 0
        total += 2 * kinds * attended * model.width
        total += 4 * model.width * model.mlp_width
    return total + len(recurrent) * _cell(model, attended) / model.window


def _cell(model: ModelConfig, attended: int) -> float:
    """Of all states of a recurrent layer over one block."""
    width, mlp = model.width, model.mlp_width
    state = 2 * width * 4 * attended  # keys, values, queries of states and of tokens
    state += 4 * model.states * attended + 4 * 2 * model.window * attended  # a state sees all 2W tokens
    if model.cell == "skip":
        state += _update(model, 2 * attended)
    elif model.cell == "single":
        state += 2 * 2 * attended * mlp + _update(model, mlp)
    else:
        state += _update(model, 2 * attended) + 2 * width * mlp + _update(model, mlp)
    return float(model.states * state)


def _update(model: ModelConfig, inputs: int) -> int:
    """The output map, and with an LSTM gate its two kernels."""
    return 2 * inputs * model.width * (3 if model.gate == "lstm" else 1)
