"""Dropout: keyed masks, vertical direction only."""

import pytest
import torch

from brt_dist.model.dropout import TILE, Dropout
from tests.unit.model.networks import built, fields, small, some_memory, starts_of, tokens_of


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

    factors = Dropout(0.25, 0, 0, (0, 1)).attention(x, 4, 16, 0)
    assert factors.shape == (2, 1, 4, 16, 32)
    assert not torch.equal(factors[0], factors[1])


def test_rate_zero_draws_nothing() -> None:
    x = torch.ones(2, 1, 3)
    dropout = Dropout(0.0, 0, 0, (0,))
    assert dropout.activations(x, 0, "site") is x
    assert dropout.attention(x, 1, 2, 0) is None


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
