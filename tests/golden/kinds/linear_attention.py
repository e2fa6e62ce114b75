"""Linear attention (arXiv 2006.16236), in the layout (N, L, H, E)."""

from typing import Any

import torch
from torch import Tensor

from brt_dist.model.mixers.linear import linear_attention, phi
from tests.golden.differences import Differences, differences, present

ARRAYS = ("Q", "K", "V", "y")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    given = {name: arrays[name].clone().requires_grad_() for name in ("Q", "K", "V")}
    streams, tokens, heads, size = given["Q"].shape
    window = next(block for block in (16, 8, 4, 2, 1) if tokens % block == 0)
    blocks = [tensor.unflatten(1, (-1, window)).transpose(2, 3) for tensor in given.values()]  # (b, t, h, W, E)
    blank = blocks[0].new_zeros(streams, heads, size, blocks[2].shape[-1] + 1)
    starts = torch.zeros(streams, tokens // window, dtype=torch.bool)
    read, state = linear_attention(phi(blocks[0]), phi(blocks[1]), blocks[2], blank, starts)
    y = read.transpose(2, 3).flatten(1, 2)
    gradients = {}
    if "w" in arrays:
        found = torch.autograd.grad((y * arrays["w"]).sum(), list(given.values()))
        gradients = {f"d{name}": gradient for name, gradient in zip(given, found, strict=True)}
    return differences(
        present({"y": y}, arrays),
        present({"S_final": state[..., :-1], "Z_final": state[..., -1]}, arrays),
        present(gradients, arrays),
    )
