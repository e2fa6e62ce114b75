"""A diagonal state space (S4D, arXiv 2206.11893), the filter of the Block-State Transformer: u (B, L, H).

The reference's layer continues with a skip, GELU, a projection to twice the channels and a GLU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from brt_dist.model.filters import Space, convolved, filtered
from tests.golden.differences import Differences, differences, present

ARRAYS = ("u", "log_dt", "C", "log_A_real", "A_imag", "y_conv")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    u = arrays["u"]
    space = Space.of(arrays["log_dt"], arrays["log_A_real"], arrays["A_imag"], arrays["C"])
    kernel = space.kernel(u.shape[1])
    long = convolved(u.transpose(1, 2), kernel).transpose(1, 2)

    # in blocks, with a state from block to block, as a layer runs
    window = next(size for size in (10, 8, 5, 4, 3, 2, 1) if u.shape[1] % size == 0)
    blocks = u.unflatten(1, (-1, window))
    blank = torch.zeros(u.shape[0], 1, *space.rate.shape, dtype=space.rate.dtype)
    starts = torch.zeros(blocks.shape[:2], dtype=torch.bool)
    y, state = filtered(Space(space.rate[None], space.read[None]), blocks, blank, starts)
    short = y.squeeze(2).permute(0, 1, 3, 2).flatten(1, 2)
    pairs = [(long, arrays["y_conv"]), (short, arrays["y_conv"]), *present({"kernel": kernel}, arrays)]
    if "y_layer" in arrays:
        skipped = functional.gelu(short + u * arrays["D"])
        mapped = functional.linear(skipped, arrays["W_out"].flatten(1), arrays["b_out"])
        pairs.append((functional.glu(mapped), arrays["y_layer"]))
    states = (
        [(torch.view_as_real(state.squeeze(1)), torch.view_as_real(arrays["state_final"]))]
        if ("state_final" in arrays)
        else []
    )
    return differences(pairs, states)
