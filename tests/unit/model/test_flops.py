"""Planned operations against those that torch counts."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.model.model import BlockRecurrentModel, loss_sum
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.hardware import peak_flops

KINDS = [
    *({"cell": cell, "gate": gate} for cell, gate in itertools.product(("skip", "single", "dual"), ("fixed", "lstm"))),
    {"recurrent_layers": ()},
    {"recurrent_layers": (0, 2), "states": 6, "window": 12},
    {"feedback": True},
    {"heads": 3, "mlp_width": 40},
]


def network(kind: dict[str, object]) -> ModelConfig:
    shape: dict[str, object] = {
        "layers": 3, "width": 16, "heads": 2, "head_dim": 8, "mlp_width": 24, "vocab_size": 64, "window": 8,
        "states": 10, "recurrent_layers": (1,), "dropout": 0.0,
    }  # fmt: skip
    return ModelConfig.model_validate(shape | kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_formula_is_what_torch_counts(kind: dict[str, object]) -> None:
    config, streams, blocks = network(kind), 2, 3
    model = BlockRecurrentModel(config, seed=0)
    tokens = torch.randint(0, 64, (streams, blocks * config.window))
    starts = torch.zeros(streams, blocks, dtype=torch.bool)
    with FlopCounterMode(display=False) as forward:
        logits, _ = model(tokens, model.blank_memory(streams), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(config, executed=True) * tokens.numel(), rel=1e-12)
    with FlopCounterMode(display=False) as backward:
        loss_sum(logits, tokens, torch.ones_like(tokens, dtype=torch.bool)).backward()
    # nothing flows back into the states and the cache that the segment began with, nor on from what it leaves
    again = attention_flops(forward) / 2  # logits, from which the backward pass recomputes the probabilities
    sums = 4 * tokens.numel() * config.width * (2 * config.layers + 1)  # of norms, as products with a vector
    share = (backward.get_total_flops() - again - sums) / ((TRAINING - 1) * forward.get_total_flops())
    assert 0.85 < share <= 1.0
    assert forward_flops(config) < forward_flops(config, executed=True)


def attention_flops(counter: FlopCounterMode) -> int:
    """Products of batches of matrices: one for the logits, an equal one for what is read."""
    return int(counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0))


def test_devices_are_known_by_the_longest_name_that_fits() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("NVIDIA L4", "bf16") == 121e12
    assert peak_flops("NVIDIA A100X", "bf16") is None  # another one
    assert peak_flops("Tesla V100-SXM2-32GB", "bf16") is None
    assert peak_flops("cpu", "fp32") is None
