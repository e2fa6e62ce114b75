"""The gated delta rule (arXiv 2412.06464), tokens before heads; g is the logarithm of the decay.

The text of an entry does not say which outputs begin with h0, and files may differ in it: with an h0, each output must
follow from it or from zeros, and the final state from the same start as o.
"""

from typing import Any

import torch
from torch import Tensor

from tests.golden.differences import Differences, differences, present, scaled
from tests.golden.kinds.delta_rule import run

ARRAYS = ("q", "k", "v", "beta", "g", "o")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    given = {name: arrays[name].transpose(1, 2).clone().requires_grad_() for name in ("q", "k", "v", "beta", "g")}
    runs = [run(given, start, given["g"]) for start in (None, arrays.get("h0"))]
    runs = [(out.transpose(1, 2), state) for out, state in runs]
    forward = {}
    for name in ("o", "o_chunk"):
        if name in arrays:
            forward[name] = min((out for out, _ in runs), key=lambda out: scaled(out, arrays[name]))
    begun = next(pair for pair in runs if pair[0] is forward["o"])
    gradients = {}
    if "w" in arrays:
        found = torch.autograd.grad((begun[0] * arrays["w"]).sum(), list(given.values()))
        gradients = {f"d{name}": gradient.transpose(1, 2) for name, gradient in zip(given, found, strict=True)}
    return differences(present(forward, arrays), present({"h_final": begun[1]}, arrays), present(gradients, arrays))
