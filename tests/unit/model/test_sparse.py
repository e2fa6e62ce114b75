"""The sparse FFN and the multiplicative projections against plain loops, and their paths against each other."""

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.dropout import TILE, Dropout
from brt_dist.model.ffn.sparse import SparseFFN
from brt_dist.model.linear import megatron_config
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.multiplicative import MultiplicativeLinear
from brt_dist.model.parameters import initialize
from brt_dist.model.sparse_units import SparseUnits
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters

MODEL = ModelConfig.model_validate(
    {
        "layers": 2, "width": 16, "heads": 2, "head_dim": 6, "vocab_size": 24, "window": 4, "dropout": 0.0,
        "mixers": {"window": {"qkv": "multiplicative"}},
        "ffns": {"sparse": {"blocks": 5, "block_size": 8, "rank": 3}},
    }
)  # fmt: skip


@pytest.fixture
def ffn() -> Iterator[SparseUnits]:
    module = MODEL.ffn_of(0).build(MODEL, 0, megatron_config())
    initialize(module, 1)
    module = module.double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    assert isinstance(module, SparseUnits)
    yield module


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(ffn: SparseUnits, x: Tensor) -> Tensor:
    """One token after the other; of each block the unit that the controller likes most."""
    settings = ffn.settings
    out = torch.empty_like(x)
    for position in range(x.shape[0]):
        for stream in range(x.shape[1]):
            token = ffn.norm(x[position, stream])
            logits = ffn.expand @ (ffn.compress @ token) + ffn.preference
            total = ffn.bias.clone()
            for block in range(settings.blocks):
                first = block * settings.block_size
                unit = first + int(logits[first : first + settings.block_size].argmax())
                total = total + torch.relu(ffn.hidden[unit] @ token) * ffn.output[unit]
            out[position, stream] = total
    return out


def test_all_paths_choose_and_compute_alike(ffn: SparseUnits) -> None:
    x = draw(3, 2, 16)
    expected = loop(ffn, x)
    logits = ffn.controlled(ffn.norm(x))
    trained = ffn.masked(ffn.norm(x), ffn.mask(logits, None))
    gathered = ffn.gathered(ffn.norm(x), logits.argmax(-1))
    assert (trained - expected).abs().max() < 1e-12
    assert (gathered - expected).abs().max() < 1e-12
    with torch.no_grad():  # 6 tokens, fewer than a block has units: gathers
        assert torch.equal(ffn(x, None), gathered)
        assert (ffn(x.repeat(2, 1, 1), None)[:3] - expected).abs().max() < 1e-12


def test_training_draws_by_stream_and_step_only(ffn: SparseUnits) -> None:
    x = draw(9, 6, 16)
    streams = (3, 0, 8, 4, 11, 7)
    whole = ffn(x, Dropout(0.0, 5, 2, streams))
    assert torch.equal(ffn(x, Dropout(0.0, 5, 2, streams)), whole)
    part = ffn(x[:, 2:4], Dropout(0.0, 5, 2, (8, 4)))
    assert (part - whole[:, 2:4]).abs().max() < 1e-12  # products of other sizes may round differently
    assert not torch.equal(ffn(x, Dropout(0.0, 5, 3, streams)), whole)

    soft = ffn.masked(ffn.norm(x), ffn.controlled(ffn.norm(x)).softmax(-1))
    used_soft = (whole - soft).abs().amax((0, 2)) < 1e-12
    assert 0 < int(used_soft.sum()) < len(streams), used_soft
    ffn.settings = ffn.settings.model_copy(update={"noise": 0.0})
    hard = loop(ffn, x)
    found = ffn(x, Dropout(0.0, 5, 2, streams))
    assert (found - hard)[:, ~used_soft].abs().max() < 1e-12


def test_the_draws_cover_the_whole_interval_and_repeat_after_a_tile() -> None:
    dropout = Dropout(0.0, 1, 0, (4, 9))
    drawn = dropout.uniform(torch.empty(TILE + 3, 2, 50), 0, "site")
    assert abs(drawn.mean().item() - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5
    assert torch.equal(drawn[TILE:], drawn[:3])
    assert torch.equal(dropout.at(2).uniform(torch.empty(3, 2, 50), 0, "site"), drawn[2:5])


def test_every_parameter_learns_through_the_hard_choice(ffn: SparseUnits) -> None:
    ffn(draw(9, 2, 16), None).square().sum().backward()
    for name, parameter in ffn.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_what_is_counted_is_what_is_there() -> None:
    model = BlockRecurrentModel(MODEL, seed=0)
    counted = sum(matrix.size for matrix in layer_parameters(MODEL, 0))
    assert counted == sum(parameter.numel() for parameter in model.layers[0].parameters())
    tokens, starts = torch.randint(24, (2, 12)), torch.zeros(2, 3, dtype=torch.bool)
    with FlopCounterMode(display=False) as forward:
        model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(MODEL, executed=True) * tokens.numel(), rel=1e-12)


def test_decoding_costs_one_unit_of_each_block() -> None:
    """Of a size in use: a token alone takes less than a tenth of the products of the dense FFN."""
    settings = SparseFFN(blocks=16, block_size=64, rank=8)
    ffn = settings.build(MODEL, 0, megatron_config())
    initialize(ffn, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        ffn(torch.randn(1, 1, 16), None)
    assert decoding.get_total_flops() == settings.decode_flops(MODEL)
    dense = 4 * MODEL.width * settings.width
    assert settings.decode_flops(MODEL) < 0.3 * dense < settings.flops(MODEL, executed=True)


def test_multiplicative_projections_are_the_sum_over_inputs() -> None:
    layer = MultiplicativeLinear(10, 3, 2, 4, megatron_config()).double()
    initialize(layer, 3)
    x = draw(2, 5, 10)
    expected = torch.zeros(2, 5, 3, 2, 4, dtype=torch.float64)
    for head in range(3):
        for kind in range(2):
            for place in range(4):
                module, column = layer.modules_of_heads[2 * head + kind], layer.places[4 * kind + place]
                expected[..., head, kind, place] = (x * module * column).sum(-1)
    assert (layer(x) - expected.flatten(2)).abs().max() < 1e-12


@pytest.mark.parametrize("order", [*permutations(range(4))][::5])
def test_multiplicative_projections_can_permute(order: tuple[int, ...]) -> None:
    layer = MultiplicativeLinear(4, 2, 1, 2, megatron_config()).double()
    with torch.no_grad():
        layer.modules_of_heads.zero_()
        layer.places.zero_()
        for place, source in enumerate(order):
            layer.modules_of_heads[place // 2, source] = 1
            layer.places[place % 2, source] = 1
    x = draw(7, 4)
    assert torch.equal(layer(x), x[:, list(order)])


def test_what_it_cannot_do_is_refused() -> None:
    given = Config.model_validate(
        {
            "data": {"dataset": "books", "segment": 64, "streams": 4},
            "run": {"directory": "run", "steps": 5000},
            "model": {"window": 16, "ffns": {"sparse": {"blocks": 3}}},
            "parallel": {"tensor": 2},
        }
    )
    with pytest.raises(ConfigError, match=r"model\.ffns\.sparse\.blocks=3 cannot be split over parallel\.tensor=2"):
        check(given)
