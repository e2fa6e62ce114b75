"""Dropout: keyed masks, vertical direction only."""

from itertools import combinations
from typing import Any

import pytest
import torch
from megatron.core import parallel_state

from brt_dist.model.dropout import TILE, Dropout, MaskVersion
from tests.unit.model.networks import built, fields, small, some_memory, starts_of, tokens_of

OLD_MASK = "10010000000000001000000000011001"


def test_masks_depend_on_seed_step_layer_site_and_stream_and_on_nothing_else() -> None:
    x = torch.ones(7, 2, 300)
    base = Dropout(0.5, 1, 2, (3, 4)).activations(x, 5, "site")
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.5, 1, 2, (3, 4)).activations(x, 5, "site"), base)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(Dropout(0.5, 1, 2, (4, 3)).activations(x, 5, "site"), base.flip(1))
    assert torch.equal(Dropout(0.5, 1, 2, torch.tensor([4])).activations(x[:, :1], 5, "site"), base[:, 1:])
    for other in (
        Dropout(0.5, 0, 2, (3, 4)).activations(x, 5, "site"),
        Dropout(0.5, 1, 3, (3, 4)).activations(x, 5, "site"),
        Dropout(0.5, 1, 2, (5, 6)).activations(x, 5, "site"),
        Dropout(0.5, 1, 2, (3, 4)).activations(x, 6, "site"),
        Dropout(0.5, 1, 2, (3, 4)).activations(x, 5, "other"),
    ):
        assert not torch.equal(other, base)


def test_rate_tile_and_scale() -> None:
    x = torch.ones(TILE * 2 + 9, 1, 400)
    y = Dropout(0.25, 0, 0, (0,)).activations(x, 0, "site")
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((y[:TILE] == 0).float().mean().item() - 0.25) < 5 * (0.25 * 0.75 / (TILE * 400)) ** 0.5
    assert torch.equal(y[TILE : 2 * TILE], y[:TILE])
    assert torch.equal(y[2 * TILE :], y[:9])

    for offset in (0, 5, TILE, TILE + 100):  # a part of the segment has the masks of its place
        part = Dropout(0.25, 0, 0, (0,)).at(offset).activations(x[offset:], 0, "site")
        assert torch.equal(part, y[offset:])

    mask = Dropout(0.25, 0, 0, (0, 1)).attention(x.device, 4, 16, 0)
    assert mask is not None
    assert mask.dropped.shape == (2, 1, 4, 16, 32)
    heads = mask.dropped.flatten(0, 2)
    assert all(not torch.equal(one, other) for one, other in combinations(heads, 2))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.15])
def test_the_mean_stays_the_same_in_bf16(rate: float) -> None:
    """1/0.95 rounded to bf16 would make all that is kept 0.2 % too large."""
    factor = 1 / (1 - rate)
    x = torch.linspace(1, 2, 1 << 18).to(torch.bfloat16).view(-1, 1, 512)  # all bf16 between 1 and 2
    y = Dropout(rate, 0, 0, (0,)).activations(x, 0, "site")
    assert torch.equal(y, torch.where(y == 0, 0, x.double() * factor).to(x.dtype)), "not the nearest to the product"
    kept = y != 0
    assert abs((y[kept].double() / x[kept].double()).mean().item() / factor - 1) < 2e-4

    probabilities = torch.ones(1, 1, 2, 64, 128)  # float32 under bf16 too
    mask = Dropout(rate, 0, 0, (0,)).attention(x.device, 2, 64, 0)
    assert mask is not None
    dropped = mask(probabilities)
    assert dropped[dropped != 0].unique().tolist() == pytest.approx([factor], rel=2**-23)


def test_gradients_have_the_same_factor_in_bf16() -> None:
    x = torch.full((TILE, 1, 256), 3.0, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.linspace(1, 2, TILE * 256).to(x.dtype).view_as(x)
    y = Dropout(0.05, 0, 0, (0,)).activations(x, 0, "site")
    y.backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(y == 0, 0, gradient.float() / 0.95).to(x.dtype))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("version", [1, 2])
def test_a_rank_draws_the_attention_masks_of_its_own_heads(
    monkeypatch: pytest.MonkeyPatch, ranks: int, version: MaskVersion
) -> None:
    dropout = Dropout(0.3, 1, 2, (3, 8), mask_version=version)
    drawn, draw = [], torch.rand

    def counted(shape: tuple[int, ...], **named: Any) -> torch.Tensor:
        drawn.append(torch.Size(shape).numel())
        return draw(shape, **named)

    monkeypatch.setattr(torch, "rand", counted)

    def part(rank: int, of: int) -> torch.Tensor:
        monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_world_size", lambda: of)
        drawn.clear()
        mask = dropout.attention(torch.device("cpu"), 8, 4, 5)
        assert mask is not None
        return mask.dropped

    whole = part(0, 1)
    parts = []
    for rank in range(ranks):
        parts.append(part(rank, ranks))
        assert sum(drawn) == (parts[-1].numel() if version == 2 else whole.numel())
    assert torch.equal(torch.cat(parts, 2), whole)


def test_version_1_draws_what_0_1_0_drew() -> None:
    """The first values of its masks, computed with it."""
    mask = Dropout(0.25, 0, 0, (0, 1), mask_version=1).attention(torch.device("cpu"), 2, 2, 0)
    assert mask is not None
    assert "".join(map(str, mask.dropped.int().flatten().tolist())) == OLD_MASK


def test_rate_zero_draws_nothing() -> None:
    x = torch.ones(2, 1, 3)
    dropout = Dropout(0.0, 0, 0, (0,))
    assert dropout.activations(x, 0, "site") is x
    assert dropout.attention(x.device, 1, 2, 0) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_with_dropout_is_repeatable_and_differs_from_one_without(dtype: torch.dtype) -> None:
    config = small()
    model = built(config, dtype=dtype)
    arguments = tokens_of(config, 2, 3), some_memory(model, 2), starts_of([0, 0, 1], [1, 0, 0])
    dropout = Dropout(0.3, 0, 7, (0, 1))
    first, memory = model(*arguments, dropout)
    second, _ = model(*arguments, dropout)
    without, _ = model(*arguments)
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert not torch.equal(first, without)
    assert torch.equal(model(*arguments, Dropout(0.0, 0, 7, (0, 1)))[0], without)
    assert all(torch.isfinite(field).all() for field in fields(memory))


def test_the_horizontal_direction_has_no_dropout() -> None:
    """With the tokens' keys and values given, the state does not depend on dropout."""
    config = small(layers=1, recurrent_layers=(0,))
    layer = built(config).layers[0]
    from brt_dist.model.attention import Window

    window = Window(*(torch.randn(1, 2, 2, 8, 6, dtype=torch.float64) for _ in range(2)))
    memory = some_memory(built(config), 1)[0]
    states = []
    for step in (1, 2):
        heads = layer.mixer.tokens.project(torch.ones(8, 1, 10, dtype=torch.float64), Dropout(0.5, 0, step, (0,)))
        _, kept = layer.mixer.mix(heads, window, memory, starts_of([0, 0]), Dropout(0.5, 0, step, (0,)), None)
        states.append(kept["state"])
    assert torch.equal(*states)
