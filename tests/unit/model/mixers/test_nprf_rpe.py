"""Kernelised attention with relative positions: dense sums over whole documents, and what the norm is good for.

The formula's numbers are in tests/golden/data/kinds; what every kind of mixer must do is in test_every_mixer.py.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.kernel_attention import features
from brt_dist.model.model import BlockRecurrentModel, loss_sum
from brt_dist.model.toeplitz import toeplitz, weighted_sums
from tests.unit.model.networks import built


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**settings: Any) -> tuple[BlockRecurrentModel, Any]:
    sizes = {"layers": 1, "width": 8, "heads": 2, "head_dim": 3, "vocab_size": 24, "window": 4, "dropout": 0.0}
    mixers = {"m": {"kind": "nprf_rpe", "features": 7, **settings}}
    model = built(ModelConfig.model_validate({**sizes, "mixers": mixers, "ffns": {"relu": {"width": 8}}}))
    return model, model.layers[0].mixer


def test_sums_over_lags_by_fft_are_those_of_the_matrix() -> None:
    kernel, x = draw(0, 3, 2 * 13 - 1), draw(1, 2, 3, 13, 5)
    expected = torch.zeros_like(x)
    for i in range(13):
        for j in range(13):
            expected[..., i, :] += kernel[:, j - i + 12, None] * x[..., j, :]
    assert (toeplitz(kernel) @ x - expected).abs().max() < 1e-12
    assert (weighted_sums(kernel, x) - expected).abs().max() < 1e-12


def test_the_features_estimate_the_exponential_of_the_product() -> None:
    q, k = (torch.nn.functional.normalize(draw(seed, 1, 1, 8), dim=-1) for seed in (0, 1))
    directions = draw(2, 1, 100_000, 8)
    estimate = features(q, directions) @ features(k, directions).transpose(-1, -2)
    assert estimate.item() == pytest.approx(math.exp((q * k).sum().item()), rel=0.02)


@pytest.mark.parametrize("reach", [1, 3, 4])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("method", ["dense", "fft"])
def test_carried_sums_are_a_dense_sum_over_the_document(reach: int, normalized: bool, method: str) -> None:
    """In segments of two blocks, over a document of twenty tokens that starts after one of four."""
    model, module = layer(reach=reach, normalized=normalized, method=method)
    p: dict[str, Tensor] = {name: value.detach() for name, value in module.named_parameters()}
    x = draw(3, 24, 1, 8)
    tokens = x[:, 0] * torch.rsqrt(x[:, 0].square().mean(-1, keepdim=True) + 1e-6) * p["norm.weight"]
    projected = (tokens @ p["projections.weight"].t()).view(24, 2, 3, 3)
    expected = torch.zeros(24, 8, dtype=torch.float64)
    for head in range(2):
        q, k, v = projected[:, head].unbind(1)
        if normalized:
            q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        else:
            q, k = (y / 3**0.25 for y in (q, k))
        w = module.directions[head]
        for i in range(24):
            numerator, denominator = torch.zeros(3, dtype=torch.float64), 0.0
            for j in range(4 if i >= 4 else 0, i + 1):
                scores = [torch.exp(w @ y - y @ y / 2) / 7**0.5 for y in (q[i], k[j])]
                weight = torch.exp(p["positions"][head, min(i - j, reach)]) * (scores[0] @ scores[1])
                numerator, denominator = numerator + weight * v[j], denominator + weight
            expected[i] += p["output.weight"][:, 3 * head : 3 * head + 3] @ (numerator / denominator)
    memory, found = model.blank_memory(1)[0], []
    starts = torch.tensor([[True, True, False, False, False, False]])
    for first in range(0, 6, 2):
        y, memory = module(x[4 * first : 4 * first + 8], memory, starts[:, first : first + 2], None)
        found.append(y[:, 0])
    assert (torch.cat(found) - expected).abs().max() < 1e-11


def test_the_random_features_do_not_depend_on_the_run() -> None:
    one, other = (layer()[1].directions for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, layer(seed=1)[1].directions)


def last_loss(normalized: bool) -> float:
    """Loss after training at a high learning rate to repeat the previous token; infinite if it is not finite."""
    torch.manual_seed(0)
    given = ModelConfig.model_validate(
        {
            "layers": 2,
            "width": 32,
            "heads": 2,
            "head_dim": 16,
            "vocab_size": 12,
            "window": 16,
            "dropout": 0.0,
            "mixers": {"nprf_rpe": {"features": 16, "normalized": normalized}},
            "ffns": {"relu": {"width": 32}},
        }
    )
    model = BlockRecurrentModel(given, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    starts, worst = torch.ones(16, 1, dtype=torch.bool), 0.0
    for step in range(60):
        tokens = torch.randint(12, (16, 16))
        target, mask = torch.cat([tokens[:, -1:], tokens[:, :-1]], 1), torch.ones(16, 16, dtype=torch.bool)
        mask[:, 0] = False
        logits, _ = model(tokens, model.blank_memory(16), starts)
        loss = loss_sum(logits, target, mask) / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            return math.inf
        worst = max(worst, loss.item()) if step >= 40 else worst
    return worst


def test_a_high_learning_rate_needs_the_norm() -> None:
    assert last_loss(True) < 0.5
    assert last_loss(False) > math.log(12)  # of a guess
