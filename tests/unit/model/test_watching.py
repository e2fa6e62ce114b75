"""What a recurrent layer reports about its states and a forward pass, where the answer is known."""

from typing import Any

import pytest
import torch

from brt_dist.evaluation.layer_tally import LayerTally, watched_by
from brt_dist.model.gates import FixedGate, LSTMGate
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.recurrent_attention import effective_rank
from tests.unit.model.networks import built, small, tokens_of


def seen(model: BlockRecurrentModel) -> dict[str, float]:
    """What layer 1 reports about two forward passes."""
    config, memory = model.config, model.blank_memory(2)
    tally, starts = LayerTally(watched_by(config), torch.device("cpu")), torch.tensor([[True, False, False]] * 2)
    with torch.no_grad(), tally.watching(model.layers):  # type: ignore[arg-type]
        for _ in range(2):
            _, memory = model(tokens_of(config, 2, 3), memory, starts)
    (layer,) = tally.result()
    assert layer.layer == 1
    return dict(layer.values)


def merge_columns(model: BlockRecurrentModel) -> Any:
    """Weight of what the layer adds, (D, heads, [from tokens, from states], E)."""
    mixer: Any = model.layers[1].mixer
    return mixer.tokens.merge.weight.data.unflatten(1, (model.config.heads, 2, -1))


@pytest.mark.parametrize("kind", [0, 1])
def test_the_part_that_comes_from_the_states(kind: int) -> None:
    model = built(small())
    assert 0.05 < seen(model)["from_states"] < 0.95
    merge_columns(model)[:, :, kind] = 0
    assert seen(model)["from_states"] == pytest.approx(1 - kind)


@pytest.mark.parametrize("cell", ["skip", "dual"])
@pytest.mark.parametrize("gate", ["fixed", "lstm"])
def test_saturated_gates(cell: str, gate: str) -> None:
    """Of ten channels, three keep everything and two keep nothing, in every gate of the cell."""
    model = built(small(cell=cell, gate=gate))
    for module in model.modules():
        if isinstance(module, FixedGate | LSTMGate):
            bias = module.bias if isinstance(module, FixedGate) else module.forget_bias
            bias.data = torch.tensor([40.0] * 3 + [0.0] * 5 + [-40.0] * 2, dtype=torch.float64)
            if isinstance(module, LSTMGate):
                module.kernels.weight.data.zero_()
    found = seen(model)
    assert found["gates_shut"] == pytest.approx(0.3) and found["gates_open"] == pytest.approx(0.2)


def test_nothing_is_told_when_nobody_watches() -> None:
    model = built(small())
    before = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }
    seen(model)
    assert before == {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }


def test_watching_changes_nothing() -> None:
    model, starts = built(small(gate="lstm")), torch.tensor([[True, False]])
    tokens, memory = tokens_of(model.config, 1, 2), model.blank_memory(1)
    with torch.no_grad():
        alone, _ = model(tokens, memory, starts)
        with LayerTally(watched_by(model.config), torch.device("cpu")).watching(model.layers):  # type: ignore[arg-type]
            watched, _ = model(tokens, memory, starts)
    assert torch.equal(alone, watched)


def test_effective_rank() -> None:
    same = torch.randn(1, 6).expand(4, 6)
    orthogonal = 3 * torch.eye(4, 6)
    # singular values 2 and 1: (4 + 1)² / (16 + 1)
    unequal = torch.zeros(4, 6).index_put((torch.tensor([0, 1]), torch.tensor([0, 1])), torch.tensor([2.0, 1.0]))
    states = torch.stack([same, orthogonal, unequal, torch.zeros(4, 6)])
    assert effective_rank(states).tolist() == pytest.approx([1, 4, 25 / 17, 0])
