"""Sigma-MoE and SwitchHead against loops over tokens and experts, and the regulariser against its definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.dropout import Dropout
from brt_dist.model.expert_layers import SigmaMoE, SwitchHead
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.routing import Routing
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, gradients, starts_of, tokens_of


def network(experts: int = 5, **ffn: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": 2, "width": 10, "heads": 2, "head_dim": 6, "vocab_size": 24, "window": 4, "dropout": 0.0,
            "mixers": {"switchhead": {"experts": experts}},
            "ffns": {"sigma_moe": {"experts": 7, "chosen": 3, "expert_width": 4, **ffn}},
        }
    )  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    mean, variance = x.mean(), x.var(unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias


def test_each_token_goes_through_the_experts_with_the_largest_scores() -> None:
    ffn = built(network()).layers[0].ffn
    assert isinstance(ffn, SigmaMoE)
    x = draw(6, 2, 10)
    keys, values = ffn.keys.view(4, 7, 10), ffn.values.view(4, 7, 10)
    for position in range(6):
        for stream in range(2):
            token = x[position, stream]
            scores = torch.sigmoid(ffn.router @ normed(ffn.norm, token))
            chosen = scores.argsort()[-3:]
            expected = sum(
                scores[expert] * (torch.relu(keys[:, expert] @ token) @ values[:, expert]) for expert in chosen
            )
            assert (ffn(x, None)[position, stream] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("experts", [5, 1])
def test_attention_mixes_values_and_outputs_of_experts(experts: int) -> None:
    model = built(network(experts))
    mixer = model.layers[0].mixer
    assert isinstance(mixer, SwitchHead)
    x, starts = draw(12, 1, 10), starts_of([1, 0, 1])
    memory = model.blank_memory(1)[0]
    found, _ = mixer(x, memory, starts)
    norms = torch.stack([normed(mixer.norm, token) for token in x[:, 0]])
    expected = torch.zeros(12, 10, dtype=torch.float64)
    for head in range(2):
        query_rows, key_rows = mixer.projections.view(2, 2, 6, 10)[head]
        queries, keys = ((norms @ rows.T) * 6**-0.25 for rows in (query_rows, key_rows))
        values, outputs = (rows.view(2, experts, 6, 10)[head] for rows in (mixer.values, mixer.outputs))
        for token in range(12):
            first = max(token - 3, 0 if token < 8 else 8)  # the second document begins at token 8
            logits = torch.stack([turned(queries[token], token) @ turned(keys[j], j) for j in range(first, token + 1)])
            weights = logits.softmax(0)
            read = torch.zeros(6, dtype=torch.float64)
            for weight, place in zip(weights, range(first, token + 1), strict=True):
                if experts == 1:
                    read += weight * (values[0] @ x[place, 0])
                else:
                    scores = torch.sigmoid(mixer.value_router.view(2, experts, 10)[head] @ norms[place])
                    for expert in scores.argsort()[-2:]:
                        read += weight * scores[expert] * (values[expert] @ x[place, 0])
            scores = torch.sigmoid(mixer.output_router.view(2, experts, 10)[head] @ norms[token])
            for expert in scores.argsort()[-2:]:
                expected[token] += scores[expert] * (read @ outputs[expert])
    assert (found[:, 0] - expected).abs().max() < 1e-12


def turned(x: Tensor, position: int) -> Tensor:
    """Rotate channels (0, 1), the first half of 6, rounded down to an even number."""
    angle = torch.tensor(float(position), dtype=torch.float64)
    one = x[0] * angle.cos() - x[1] * angle.sin()
    other = x[1] * angle.cos() + x[0] * angle.sin()
    return torch.cat([torch.stack([one, other]), x[2:]])


def test_the_regulariser_is_minus_the_entropy_of_the_mean_choice_of_each_stream() -> None:
    logits = draw(5, 3, 4).requires_grad_()
    y = draw(2, seed=1).requires_grad_()
    first, second = Routing(2, 0, 0.5), None
    second = Routing(2, 1, 0.5, sums=first.sums)
    assert first.regularised(y, "router", logits, 0.3) is y
    other = draw(5, 3, 4, seed=2).requires_grad_()
    second.regularised(y, "router", other, 0.3).sum().backward()
    shares = torch.cat([logits, other]).softmax(-1).mean(0)
    loss = 0.5 * 0.3 * (shares * shares.log()).sum(-1).mean()
    expected = torch.autograd.grad(loss, [logits, other])
    for found, wanted in zip((logits.grad, other.grad), expected, strict=True):
        assert (found - wanted).abs().max() < 1e-12
    assert torch.equal(y.grad, torch.ones_like(y))


def test_training_with_it_uses_more_experts_and_evaluation_knows_nothing_of_it() -> None:
    used = {}
    for weight in (0.0, 1.0):
        model = BlockRecurrentModel(network(entropy=weight), seed=0)
        optimizer = torch.optim.SGD([layer.ffn.router for layer in model.layers], lr=2.0)
        tokens, starts = tokens_of(model.config, 2, 4), starts_of([1, 0, 0, 0], [1, 0, 0, 0])
        for step in range(30):
            logits, _ = model(tokens, model.blank_memory(2), starts, Dropout(0.0, 0, step, (0, 1)))
            optimizer.zero_grad()
            (0.0 * logits.nan_to_num(0, 0, 0).sum()).backward()
            optimizer.step()
        x = model.embedding(tokens)
        ffn = model.layers[0].ffn
        shares = (ffn.norm(x) @ ffn.router.T).softmax(-1).mean((0, 1))
        used[weight] = -(shares * shares.log()).sum().item()
    assert used[0.0] < used[1.0] <= math.log(7)


@pytest.mark.parametrize("experts", [5, 1])
def test_what_is_counted_is_what_is_there_and_all_of_it_learns(experts: int) -> None:
    config = network(experts)
    model = built(config)
    counted = sum(matrix.size for matrix in layer_parameters(config, 1))
    assert counted == sum(parameter.numel() for parameter in model.layers[1].parameters())
    tokens, starts = tokens_of(config, 2, 3), starts_of([1, 0, 0], [0, 0, 1])
    with FlopCounterMode(display=False) as forward:
        logits, _ = model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(config, executed=True) * tokens.numel(), rel=1e-12)
    for name, gradient in gradients(model, logits.square().sum()).items():
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"ffns": {"sigma_moe": {"experts": 7, "chosen": 9}}}, "nearest: model.ffns.sigma_moe.chosen=7"),
        ({"mixers": {"switchhead": {"experts": 3, "chosen": 4}}}, "nearest: model.mixers.switchhead.chosen=3"),
        (
            {"feedback": True, "mixers": {"recurrent": {"layers": None}}, "ffns": {"sigma_moe": {}}},
            "with feedback a layer sees one block at a time; nearest: model.ffns.sigma_moe.entropy=0",
        ),
        ({"ffns": {"sigma_moe": {"expert_width": 5}}}, "model.ffns.sigma_moe.expert_width=5 cannot be split"),
    ],
)
def test_what_it_cannot_do_is_refused(model: dict[str, Any], said: str) -> None:
    given = {
        "data": {"dataset": "books", "segment": 64, "streams": 4},
        "run": {"directory": "run", "steps": 5000},
        "model": network().model_dump() | {"window": 16} | model,
        "parallel": {"tensor": 2},
    }
    with pytest.raises(ConfigError) as error:
        check(Config.model_validate(given))
    assert said in str(error.value)
