"""The compressed memory of older blocks against a plain float64 loop, and what follows from its definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.fourier_memory import compressed, older
from tests.unit.model.networks import built, tokens_of

WINDOW, BLOCKS = 5, 8


def network(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": 1, "width": 12, "heads": 2, "head_dim": 6, "vocab_size": 16, "window": WINDOW, "dropout": 0.0,
            "mixers": {"fourier_memory": {"blocks": 3, "keep": 0.6, "positions": "none", **settings}},
            "ffns": {"relu": {"width": 14}},
        }
    )  # fmt: skip


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def waves(size: int) -> Tensor:
    rows = [[math.cos(math.pi * (2 * n + 1) * k / (2 * size)) for n in range(size)] for k in range(size)]
    matrix = torch.tensor(rows, dtype=torch.float64) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def short(block: Tensor, rows: int) -> Tensor:
    """(W, E) -> (M, E)"""
    return waves(rows).T @ (waves(len(block)) @ block)[:rows] * math.sqrt(rows / len(block))


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def test_compressed_rows_are_the_sum_and_a_constant_stays() -> None:
    x = draw(2, 3, 2, WINDOW, 6)
    found = compressed(x, 3)
    assert found.shape == (2, 3, 2, 3, 6)
    assert (found[1, 2, 0] - short(x[1, 2, 0], 3)).abs().max() < 1e-12
    assert (compressed(x, WINDOW) - x).abs().max() < 1e-12
    assert (compressed(torch.full_like(x, 0.7), 2) - 0.7).abs().max() < 1e-12


@pytest.mark.parametrize("starts", [(0, 0, 0, 0, 0, 0, 0, 0), (1, 0, 0, 1, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0, 1, 0)])
def test_what_a_token_reads_is_that_of_a_plain_loop(starts: tuple[int, ...]) -> None:
    config = network()
    mixer: Any = built(config).layers[0].mixer
    x, begins = draw(BLOCKS * WINDOW, 1, 12), torch.tensor([starts], dtype=torch.bool)
    sizes = {"keys": WINDOW, "values": WINDOW, "older_keys": 9, "older_values": 9}
    memory = {name: draw(1, size, 2, 6) for name, size in sizes.items()}
    mixed, after = mixer(x, memory, begins, None)
    heads = mixer.tokens.project(x, None)
    read = torch.zeros(BLOCKS * WINDOW, 2, 2, 6, dtype=torch.float64)  # of each head, from tokens and from rows
    for head in range(2):
        old = [
            (memory["older_keys"][0, 3 * i : 3 * i + 3, head], memory["older_values"][0, 3 * i : 3 * i + 3, head])
            for i in range(3)
        ]
        before = memory["keys"][0, :, head], memory["values"][0, :, head]
        for block in range(BLOCKS):
            if starts[block]:
                old = [(torch.zeros(3, 6).double(), torch.zeros(3, 6).double())] * 3
                before = torch.zeros(WINDOW, 6).double(), torch.zeros(WINDOW, 6).double()
            here = heads.keys[0, block, head], heads.values[0, block, head]
            keys, values = (torch.cat([a, b]) for a, b in zip(before, here, strict=True))
            old_keys, old_values = (torch.cat([pair[i] for pair in old]) for i in (0, 1))
            for place in range(WINDOW):
                token, seen = block * WINDOW + place, slice(place, place + WINDOW)  # the W tokens before it
                weights = (heads.queries[0, block, head, place] @ keys[seen].T).softmax(0)
                read[token, head, 0] = weights @ values[seen]
                weights = (heads.state_queries[0, block, head, place] @ old_keys.T).softmax(0)
                read[token, head, 1] = weights @ old_values
            old = [*old[1:], (unit(short(before[0], 3)), short(before[1], 3))]
            before = here
        for i, name in enumerate(("older_keys", "older_values")):
            assert (after[name][0, :, head] - torch.cat([pair[i] for pair in old])).abs().max() < 1e-12
    expected = read.flatten(1) @ mixer.tokens.merge.weight.T
    assert (mixed[:, 0] - expected).abs().max() < 1e-10


def test_with_all_rows_kept_older_blocks_are_there_as_they_were() -> None:
    rows = draw(1, BLOCKS, 2, WINDOW, 6)
    entering, after = older(
        compressed(rows, WINDOW), torch.zeros(1, 3 * WINDOW, 2, 6).double(), torch.zeros(1, BLOCKS, dtype=torch.bool)
    )
    for block in range(3, BLOCKS):
        assert (entering[0, block] - rows[0, block - 3 : block].transpose(0, 1).flatten(1, 2)).abs().max() < 1e-12
    assert after.shape == (1, 3 * WINDOW, 2, 6)


def test_memory_does_not_grow_and_forgets_what_is_older() -> None:
    config = network()
    model = built(config)
    tokens, starts = tokens_of(config, 1, BLOCKS), torch.zeros(1, BLOCKS, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, :WINDOW] = (changed[:, :WINDOW] + 1) % 16
    (one, kept), (other, _) = (model(given, model.blank_memory(1), starts) for given in (tokens, changed))
    apart = (one - other).abs().amax((1, 2)).unflatten(0, (BLOCKS, WINDOW)).amax(1)
    reach = 1 + 3  # the previous block, and 3 before it
    assert (apart[: reach + 1] > 1e-6).all() and (apart[reach + 1 :] == 0).all()
    shapes = {name: value.shape for name, value in model.blank_memory(1)[0].items()}
    assert {name: value.shape for name, value in kept[0].items()} == shapes
