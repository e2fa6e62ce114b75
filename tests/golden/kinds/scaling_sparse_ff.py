"""The sparse FFN and the multiplicative layer of Scaling Transformers (arXiv 2111.12763), on tokens (T, D).

The file's layer has no norm in front and a bias at the end; w1 is (D, blocks, N) and w2 (N, blocks, D).
"""

from typing import Any

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.ffn.sparse import SparseFFN
from brt_dist.model.linear import megatron_config
from brt_dist.model.multiplicative import MultiplicativeLinear
from brt_dist.model.sparse_units import SparseUnits
from tests.golden.differences import Differences, differences, present

ARRAYS = ("x", "m1", "m2", "mb", "w1", "w2", "y")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    x, (blocks, size) = arrays["x"], arrays["mb"].shape
    model = ModelConfig(width=x.shape[1], layers=1)
    settings = SparseFFN(blocks=blocks, block_size=size, rank=arrays["m1"].shape[1])
    ffn = SparseUnits(settings, model, 0, megatron_config()).to(x.dtype)
    values = {
        "compress": arrays["m1"].T,
        "expand": arrays["m2"].flatten(1).T,
        "preference": arrays["mb"].flatten(),
        "hidden": arrays["w1"].flatten(1).T,
        "output": arrays["w2"].transpose(0, 1).flatten(0, 1),
        "bias": arrays.get("b2", torch.zeros_like(x[0])),
    }
    with torch.no_grad():
        for name, value in values.items():
            getattr(ffn, name).copy_(value)
    tokens = x.unsqueeze(1)
    logits = ffn.controlled(tokens)
    choice = logits.argmax(-1)
    ours = {"logits": logits, "choice": choice, "y_soft": ffn.masked(tokens, logits.softmax(-1))}
    pairs = [(ffn.masked(tokens, ffn.mask(logits, None)), arrays["y"]), (ffn.gathered(tokens, choice), arrays["y"])]
    pairs = [(found.squeeze(1), theirs) for found, theirs in pairs]
    pairs += present({name: value.squeeze(1) for name, value in ours.items()}, arrays)
    if "ymult" in arrays:
        pairs.append((multiplied(x, arrays["gate"], arrays["proj"]) + arrays["bias"], arrays["ymult"]))
    return differences(pairs)


def multiplied(x: Tensor, gate: Tensor, places: Tensor) -> Tensor:
    """`gate` (modules, D), `places` (D, outputs of a module)."""
    layer = MultiplicativeLinear(x.shape[1], len(gate), 1, places.shape[1], megatron_config()).to(x.dtype)
    with torch.no_grad():
        layer.modules_of_heads.copy_(gate)
        layer.places.copy_(places.T)
    return layer(x)
