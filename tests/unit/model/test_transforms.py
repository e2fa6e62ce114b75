"""Fourier mixing and shortening against their definitions; and why FNet is refused in a language model."""

import math

import pytest
import torch

from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.layers import Layer
from brt_dist.model.parameters import initialize
from brt_dist.model.transforms import cosines, fourier_mixed, fourier_mixed_by_products, from_cosines, shortened


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
def test_the_cosine_transform_is_its_sum_and_has_an_inverse(size: int) -> None:
    x = draw(3, size)
    steps = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * steps + 1) * steps[:, None] / (2 * size)) * math.sqrt(2 / size)
    waves[0] = math.sqrt(1 / size)
    assert (cosines(x) - x @ waves.T).abs().max() < 1e-12
    assert (from_cosines(cosines(x)) - x).abs().max() < 1e-12


def test_shortening_keeps_what_varies_slowly() -> None:
    steps = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    slow, fast = (torch.cos(math.pi * waves * steps).view(1, 100, 1) for waves in (6, 60))
    short = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    expected = torch.cos(math.pi * 6 * short).view(1, 20, 1) * math.sqrt(100 / 20)
    assert (shortened(slow, 20) - expected).abs().max() < 1e-12
    assert shortened(fast, 20).abs().max() < 1e-12
    assert (shortened(slow, 100) - slow).abs().max() < 1e-12


def test_mixing_sees_later_tokens_and_its_causal_form_does_not() -> None:
    x = draw(1, 8, 6)
    changed = x.clone()
    changed[:, 5:] += 1.0
    assert (fourier_mixed(x) - fourier_mixed(changed))[:, :5].abs().max() > 0.1
    assert torch.equal(*(fourier_mixed_by_products(given, causal=True)[:, :5] for given in (x, changed)))
    assert (fourier_mixed(x) - fourier_mixed_by_products(x)).abs().max() < 1e-12


def test_a_layer_mixes_each_stream_by_itself_and_learns() -> None:
    config = ModelConfig.model_validate(
        {"layers": 1, "width": 6, "heads": 1, "head_dim": 4, "window": 4, "mixers": {"fnet": {}}, "dropout": 0.0}
    )
    layer = Layer(config, 0)
    initialize(layer, 0)
    layer = layer.double()
    x, starts = draw(8, 2, 6), torch.zeros(2, 2, dtype=torch.bool)
    mixed, memory = layer.mixer(x, {}, starts, None)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    assert (mixed[:, 1] - torch.fft.fft2(normed[:, 1], norm="ortho").real).abs().max() < 1e-12
    assert memory == {}
    layer(x, {}, starts)[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_what_a_layer_mixes_does_not_drown_the_residual() -> None:
    """The transform alone is sqrt(T D) times as large as its input, here 90 times."""
    config = ModelConfig.model_validate(
        {"layers": 1, "width": 64, "heads": 1, "head_dim": 4, "window": 8, "mixers": {"fnet": {}}, "dropout": 0.0}
    )
    layer = Layer(config, 0)
    initialize(layer, 0)
    mixed, _ = layer.mixer(draw(128, 2, 64).float(), {}, torch.zeros(2, 16, dtype=torch.bool), None)
    assert 0.5 < mixed.square().mean().sqrt() < 1


def test_a_mixer_that_is_not_causal_is_refused_with_the_reason() -> None:
    given = {
        "data": {"dataset": "books", "segment": 64, "streams": 4},
        "run": {"directory": "run", "steps": 5000},
        "model": {"layers": 2, "window": 16, "mixers": {"window": {}, "fnet": {"layers": [0]}}},
    }
    with pytest.raises(ConfigError) as error:
        check(Config.model_validate(given))
    assert str(error.value) == (
        "model.mixers.fnet: fnet is not causal, because its Fourier transform mixes each token with all later tokens "
        "of the segment; a language model must not know what it predicts; nearest: model.mixers.fnet.kind=window, "
        "or model.objective=mlm, to train an encoder"
    )
