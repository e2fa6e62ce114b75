"""The sigma-MoE FFN of MoEUT (arXiv 2405.16039): x and the router's input (B, T, D); the norm is left out.

The number of chosen experts is in no array: the one that fits best is used.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from brt_dist.model.experts import sigma_moe
from brt_dist.model.routing import log_sums, negative_entropy
from tests.golden.differences import Differences, differences, scaled

ARRAYS = ("x", "y", "sel_input", "keys", "values", "expert_sel")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    logits = functional.linear(arrays["sel_input"], arrays["expert_sel"])
    outputs = [
        sigma_moe(arrays["x"], logits, arrays["keys"], arrays["values"], chosen)
        for chosen in range(1, len(arrays["keys"]) + 1)
    ]
    pairs = [(min(outputs, key=lambda y: scaled(y, arrays["y"])), arrays["y"])]
    if "reg_loss" in arrays:  # the mean over tokens is of each stream, or of all together
        losses = [
            negative_entropy(log_sums(tokens) - torch.log(torch.tensor(float(len(tokens)))))
            for tokens in (logits.transpose(0, 1), logits.flatten(0, 1))
        ]
        expected = arrays["reg_loss"].reshape(())
        pairs.append((min(losses, key=lambda loss: scaled(loss, expected)), expected))
    return differences(pairs)
