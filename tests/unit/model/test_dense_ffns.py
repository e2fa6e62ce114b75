"""The FFNs of GPT-2 and LLaMA against their formulas in float64, and what is counted of them."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.linear import megatron_config
from brt_dist.model.parameters import initialize
from brt_dist.planning.parameters import layer_parameters


def model(ffn: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate(
        {"layers": 1, "width": 6, "heads": 1, "head_dim": 2, "window": 4, "mixers": {"window": {}}, "ffns": ffn}
    )


def test_gelu() -> None:
    ffn: Any = model({"gelu": {"width": 10}}).ffn_of(0).build(model({"gelu": {"width": 10}}), 0, megatron_config())
    ffn = ffn.double()
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for token, y in zip(x.flatten(0, 1), ffn(x, None).flatten(0, 1), strict=True):
        normed = (token - token.mean()) / torch.sqrt(((token - token.mean()) ** 2).mean() + 1e-5)
        h = ffn.hidden.weight @ (normed * ffn.norm.weight + ffn.norm.bias) + ffn.hidden_bias
        h = h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
        torch.testing.assert_close(y, ffn.output.weight @ h + ffn.output_bias)


def test_swiglu() -> None:
    given = model({"swiglu": {"width": 10}})
    ffn: Any = given.ffn_of(0).build(given, 0, megatron_config())
    ffn = ffn.double()
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for token, y in zip(x.flatten(0, 1), ffn(x, None).flatten(0, 1), strict=True):
        normed = token / torch.sqrt((token**2).mean() + 1e-6) * ffn.norm.weight
        gate, up = ffn.hidden.weight[0::2] @ normed, ffn.hidden.weight[1::2] @ normed
        torch.testing.assert_close(y, ffn.output.weight @ (gate / (1 + torch.exp(-gate)) * up))


@pytest.mark.parametrize("ffn", [{"gelu": {"width": 10}}, {"swiglu": {"width": 10}}])
def test_what_is_counted_is_what_is_there(ffn: dict[str, Any]) -> None:
    given = model(ffn)
    layer = Layer(given, 0)
    initialize(layer, 0)
    counted = sum(matrix.size for matrix in layer_parameters(given, 0))
    assert counted == sum(parameter.numel() for parameter in layer.parameters())
    with FlopCounterMode(display=False) as forward:
        layer.ffn(torch.randn(4, 2, 6), None)
    assert forward.get_total_flops() == 8 * given.ffn_of(0).flops(given, executed=True)
