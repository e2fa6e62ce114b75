"""The delta rule (arXiv 2406.06484), heads before tokens; with and without an initial state."""

from typing import Any

import torch
from torch import Tensor

from brt_dist.model.delta_rule import delta_rule
from tests.golden.differences import Differences, differences, present

ARRAYS = ("q", "k", "v", "beta", "o")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    given = {name: arrays[name].clone().requires_grad_() for name in ("q", "k", "v", "beta")}
    forward, state = {}, {}
    for start, suffix in (("", ""), ("", "_chunk"), ("S0", "_S0")):
        if start in arrays or not start:
            out, after = run(given, arrays.get(start))
            forward["o" + suffix] = out
            state["S_chunk" if suffix == "_chunk" else "S_final" + suffix] = after
    gradients = {}
    if "w" in arrays:
        found = torch.autograd.grad((forward["o"] * arrays["w"]).sum(), list(given.values()))
        gradients = {f"d{name}": gradient for name, gradient in zip(given, found, strict=True)}
    return differences(present(forward, arrays), present(state, arrays), present(gradients, arrays))


def run(given: dict[str, Tensor], start: Tensor | None, decays: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tensors (B, H, T, ...) -> (B, H, T, M) and the state."""
    tokens = given["q"].shape[2]
    chunk = next(size for size in (32, 16, 8, 4, 2, 1) if tokens % size == 0)

    def chunked(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, chunk)).transpose(1, 2)

    streams, heads, _, size = given["k"].shape
    blank = given["v"].new_zeros(streams, heads, size, given["v"].shape[-1])
    read, state = delta_rule(
        *(chunked(given[name]) for name in ("q", "k", "v", "beta")),
        None if decays is None else chunked(decays),
        blank if start is None else start,
        torch.zeros(streams, tokens // chunk, dtype=torch.bool),
    )
    return read.transpose(1, 2).flatten(2, 3), state
