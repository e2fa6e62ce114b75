"""MemSizer (arXiv 2203.12644), tokens first: the whole layer without the norm before it."""

from typing import Any

import torch
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.linear import megatron_config
from brt_dist.model.mixers.memsizer import MemSizerMixer
from tests.golden.differences import Differences, differences, present

OURS = {
    "q_proj": "queries", "k_proj": "keys", "v_proj": "values", "k_layer_norm": "key_norm", "v_layer_norm": "value_norm",
}  # fmt: skip
ARRAYS = ("x", "y", *(f"p_{name}_{part}" for name in OURS for part in ("weight", "bias")))


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    x = arrays["x"].clone().requires_grad_()
    tokens, streams, width = x.shape
    rows = arrays["p_k_proj_weight"].shape[0]
    window = next(block for block in (16, 8, 4, 2, 1) if tokens % block == 0)
    settings = MemSizerMixer(rows=rows)
    sizes = {"layers": 1, "width": width, "heads": len(arrays["p_q_proj_weight"]) // rows, "window": window}
    model = ModelConfig.model_validate({**sizes, "mixers": {"memsizer": settings.model_dump()}})
    module = settings.build(model, 0, megatron_config()).to(x.dtype)
    module.norm = nn.Identity()
    with torch.no_grad():
        for theirs, ours in OURS.items():
            for part in ("weight", "bias"):
                module.get_parameter(f"{ours}.{part}").copy_(arrays[f"p_{theirs}_{part}"])
    blank = {"state": x.new_zeros(streams, rows, width), "count": x.new_zeros(streams, 1)}
    y, memory = module(x, blank, torch.zeros(streams, tokens // window, dtype=torch.bool), None)
    gradients = {}
    if "w" in arrays:
        gradients["gx"] = torch.autograd.grad((y * arrays["w"]).sum(), x)[0]
    return differences(
        present({"y": y, "y_incremental": y}, arrays),
        present({"state_S": memory["state"], "state_n": memory["count"][:, 0]}, arrays),
        present(gradients, arrays),
    )
