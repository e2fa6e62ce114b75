"""An encoder-decoder against a plain float64 version of it; what it costs; and attention in both directions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.model import BlockRecurrentModel, full_logits
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, tokens_of

WINDOW, LEFT = 20, 8
BEGINS = torch.ones(2, 1, dtype=torch.bool)


def network(**changes: Any) -> ModelConfig:
    """Two layers of an encoder, the second with ceil(0.37 * 20) tokens, and two of a decoder."""
    return ModelConfig.model_validate(
        {
            "layers": 4, "width": 12, "heads": 2, "head_dim": 6, "vocab_size": 16, "window": WINDOW, "dropout": 0.0,
            "objective": "denoise", "encoder": {"layers": 2, "shortened": [1], "keep": 0.37},
            "mixers": {"bidirectional": {"layers": [0, 1]}, "linear": {}}, "ffns": {"relu": {"width": 14}}, **changes,
        }
    )  # fmt: skip


def inputs(config: ModelConfig) -> tuple[Tensor, Tensor]:
    return tokens_of(config, 2, 1), tokens_of(config, 2, 1, seed=1)


def read(model: BlockRecurrentModel, tokens: Tensor, source: Tensor | None) -> Tensor:
    return full_logits(model(tokens, model.blank_memory(2), BEGINS, source=source)[0], 16)


# ---- the same, one stream at a time, as plainly as it can be ----------------------------------------------------


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def positions(length: int, width: int) -> Tensor:
    rows = [
        [math.sin(p / 10000 ** (2 * j / width)) for j in range(width // 2)]
        + [math.cos(p / 10000 ** (2 * j / width)) for j in range(width // 2)]
        for p in range(length)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def waves(size: int) -> Tensor:
    """The orthonormal DCT-II of a size as a matrix."""
    matrix = torch.tensor(
        [[math.cos(math.pi * (2 * n + 1) * k / (2 * size)) for n in range(size)] for k in range(size)],
        dtype=torch.float64,
    ) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def turned(x: Tensor) -> Tensor:
    """Rows x (n, E) as complex numbers, each turned by its position."""
    half = x.shape[1] // 2
    angles = torch.tensor(
        [[p / 10000 ** (2 * j / x.shape[1]) for j in range(half)] for p in range(len(x))], dtype=torch.float64
    )
    found = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([found.real, found.imag], 1)


def both_ways(mixer: Any, x: Tensor, heads: int) -> Tensor:
    """Attention in both directions, of x (n, D)."""
    size = mixer.output.weight.shape[1] // heads
    projected = normed(x, mixer.norm.weight) @ mixer.projections.weight.T
    read = []
    for head in range(heads):
        keys, values, queries = (
            projected[:, head * 3 * size : (head + 1) * 3 * size].split(size, 1)[i] for i in (1, 2, 0)
        )
        logits = turned(queries) @ turned(keys).T / math.sqrt(size)
        read.append(logits.softmax(1) @ values)
    return torch.cat(read, 1) @ mixer.output.weight.T


def crossed(cross: Any, x: Tensor, source: Tensor, heads: int) -> Tensor:
    size = cross.merge.weight.shape[1] // heads
    asked = normed(x, cross.norm.weight) @ cross.queries.weight.T
    offered = normed(source, cross.source_norm.weight) @ cross.projections.weight.T
    read = []
    for head in range(heads):
        keys, values = offered[:, 2 * head * size : 2 * (head + 1) * size].split(size, 1)
        queries = unit(asked[:, head * size : (head + 1) * size]) * cross.scale.weight[head].abs()
        read.append((queries @ unit(keys).T).softmax(1) @ values)
    return torch.cat(read, 1) @ cross.merge.weight.T


def fed(ffn: Any, x: Tensor) -> Tensor:
    return torch.relu(normed(x, ffn.norm.weight) @ ffn.hidden.weight.T) @ ffn.output.weight.T


def plainly(model: BlockRecurrentModel, tokens: Tensor, source: Tensor) -> Tensor:
    config, table = model.config, model.embedding.weight
    found = []
    for given, told in zip(tokens, source, strict=True):
        e = table[told] + positions(WINDOW, config.width)
        for index in range(2):
            layer: Any = model.layers[index]
            if index == 1:
                e = waves(LEFT).T @ (waves(WINDOW) @ e)[:LEFT]
            e = e + both_ways(layer.mixer, e, config.heads)
            e = e + fed(layer.ffn, e)
        x = table[given] + positions(WINDOW, config.width)
        for index in (2, 3):
            layer = model.layers[index]
            mixed, _ = layer.mixer(x.unsqueeze(1), layer.blank_memory(1), BEGINS[:1], None)  # tested elsewhere
            x = x + mixed.squeeze(1)
            x = x + crossed(layer.cross, x, e, config.heads)
            x = x + fed(layer.ffn, x)
        found.append(normed(x, model.final_norm.weight) @ table[: config.vocab_size].T / math.sqrt(config.width))
    return torch.stack(found)


def test_logits_and_gradients_are_those_of_the_plain_version() -> None:
    config = network()
    model = built(config)
    tokens, source = inputs(config)
    ours, plain = read(model, tokens, source), plainly(model, tokens, source)
    assert (ours - plain).abs().max() < 1e-10
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    one, other = (torch.autograd.grad((found * weights).sum(), parameters) for found in (ours, plain))
    assert all((a - b).abs().max() <= 1e-9 * (1 + b.abs().max()) for a, b in zip(one, other, strict=True))


# ---- what follows from the definition ---------------------------------------------------------------------------


def test_the_decoder_reads_all_of_the_source_and_no_later_token() -> None:
    config = network()
    model = built(config)
    tokens, source = inputs(config)
    before = read(model, tokens, source)
    later = tokens.clone()
    later[:, 13:] = (later[:, 13:] + 1) % 16
    assert torch.equal(read(model, later, source)[:, :13], before[:, :13])
    told = source.clone()
    told[:, -1] = (told[:, -1] + 1) % 16
    assert (read(model, tokens, told) - before)[:, 0].abs().max() > 1e-4


def test_the_decoder_carries_memory_and_the_encoder_none() -> None:
    config = network()
    model = built(config)
    tokens, source = inputs(config)
    _, memory = model(tokens, model.blank_memory(2), BEGINS, source=source)
    assert [set(layer) for layer in memory] == [set(), set(), {"state"}, {"state"}]
    goes_on, _ = model(tokens, memory, ~BEGINS, source=source)
    begins, _ = model(tokens, memory, BEGINS, source=source)
    assert torch.equal(full_logits(begins, 16), read(model, tokens, source))
    assert not torch.allclose(goes_on, begins)


def test_keeping_all_tokens_changes_nothing() -> None:
    shortened, whole = (network(encoder={"layers": 2, "shortened": at, "keep": 1.0}) for at in ([0, 1], []))
    tokens, source = inputs(whole)
    found = [read(built(config), tokens, source) for config in (shortened, whole)]
    assert (found[0] - found[1]).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("keep", "shortened", "lengths"),
    [(0.37, (1,), [20, 8, 20, 20]), (0.5, (0, 1), [10, 5, 20, 20]), (0.1, (0,), [2, 2, 20, 20]), (1.0, (0,), [20] * 4)],
)
def test_tokens_that_a_layer_reads(keep: float, shortened: tuple[int, ...], lengths: list[int]) -> None:
    config = network(encoder={"layers": 2, "shortened": shortened, "keep": keep})
    assert [config.at(layer).window for layer in range(4)] == lengths
    assert network(window=30, encoder={"layers": 2, "shortened": [0], "keep": 0.1}).at(0).window == 3  # not 4


def test_what_is_counted_is_what_is_there() -> None:
    config = network()
    model = built(config)
    for index, layer in enumerate(model.layers):
        counted = sum(matrix.size for matrix in layer_parameters(config, index))
        assert counted == sum(parameter.numel() for parameter in layer.parameters())
    tokens, source = inputs(config)
    with FlopCounterMode(display=False) as forward:
        read(model, tokens, source)
    assert forward.get_total_flops() == pytest.approx(forward_flops(config, executed=True) * tokens.numel(), rel=1e-12)
    whole = network(encoder={"layers": 2})
    assert forward_flops(config) < forward_flops(whole)


def test_a_source_is_for_models_with_an_encoder_alone() -> None:
    config = network()
    tokens, source = inputs(config)
    with pytest.raises(ConfigError, match="and no other, reads a source"):
        read(built(config), tokens, None)
    plain = network(objective="causal", encoder={"layers": 0}, mixers={"linear": {}})
    with pytest.raises(ConfigError, match="and no other, reads a source"):
        read(built(plain), tokens, source)
