"""Embedding, logits, loss, positions."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from brt_dist.model.attention import merge_heads, split_heads
from brt_dist.model.model import TokenEmbedding, full_logits, loss_sum, token_losses
from brt_dist.model.parameters import initialize
from brt_dist.model.positions import RelativeBias, banded, bucket, rotated
from brt_dist.model.shapes import padded_vocab
from tests.unit.model.networks import small

GOLDEN = Path(__file__).parents[2] / "golden" / "data"


def test_vocabulary_is_padded_to_equal_multiples_of_eight() -> None:
    assert [padded_vocab(vocab, 1) for vocab in (1, 8, 9, 50257)] == [8, 8, 16, 50264]
    assert [padded_vocab(vocab, 4) for vocab in (1, 32, 33, 50257)] == [32, 32, 64, 50272]


@pytest.mark.parametrize("vocab", [1, 7, 8, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_not_part_of_the_model(vocab: int, dtype: torch.dtype) -> None:
    embedding = TokenEmbedding(small(vocab_size=vocab)).to(dtype)
    initialize(embedding, 0, "embedding")
    assert embedding.weight.shape == (padded_vocab(vocab, 1), 10)
    assert torch.count_nonzero(embedding.weight[vocab:]) == 0

    x = torch.randn(6, 2, 10).to(dtype)
    target, mask = torch.randint(vocab, (2, 6)), torch.rand(2, 6) < 0.7
    logits = embedding.logits(x)
    expected = x.float().transpose(0, 1) @ embedding.weight[:vocab].float().T / 10**0.5
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=0.02, atol=0.05)
    torch.testing.assert_close(full_logits(logits, vocab).float(), expected, **tolerance)
    losses = F.cross_entropy(expected.flatten(0, 1), target.flatten(), reduction="none").view(2, 6)
    torch.testing.assert_close(token_losses(logits, target), losses, **tolerance)
    assert token_losses(logits, target).dtype == torch.float32
    total = loss_sum(logits, target, mask)
    torch.testing.assert_close(total, losses[mask].sum(), rtol=tolerance["rtol"], atol=12 * tolerance["atol"])

    total.backward()
    assert torch.count_nonzero(embedding.weight.grad[vocab:]) == 0
    assert torch.isfinite(embedding.weight.grad).all()


def test_the_loss_leaves_the_logits_as_they_are() -> None:
    embedding = TokenEmbedding(small())
    initialize(embedding, 0, "embedding")
    logits = embedding.logits(torch.randn(4, 1, 10))
    before = logits.detach().clone()
    loss_sum(logits, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(logits, before)


def test_a_segment_without_targets_has_no_loss_and_no_gradient() -> None:
    embedding = TokenEmbedding(small())
    initialize(embedding, 0, "embedding")
    loss = loss_sum(
        embedding.logits(torch.randn(4, 1, 10)),
        torch.zeros(1, 4, dtype=torch.long),
        torch.zeros(1, 4, dtype=torch.bool),
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(embedding.weight.grad) == 0


def test_tied_table_embeds_and_scores() -> None:
    embedding = TokenEmbedding(small())
    initialize(embedding, 0, "embedding")
    tokens = torch.tensor([[3, 1], [2, 22]])
    assert torch.equal(embedding(tokens), embedding.weight[tokens.T])
    assert [name for name, _ in embedding.named_parameters()] == ["weight"]


def test_buckets_are_those_of_the_reference() -> None:
    expected = json.loads((GOLDEN / "t5_buckets.json").read_text())["bucket"]
    assert [bucket(distance) for distance in range(len(expected))] == expected


def test_bias_of_every_query_and_key() -> None:
    config = small(window=20)
    positions = RelativeBias(config)
    torch.nn.init.normal_(positions.weight)
    bias = banded(positions())
    assert bias.shape == (2, 20, 40)
    for query in range(20):
        for key in range(40):
            distance = query + 20 - key
            if 1 <= distance <= 20:
                assert torch.equal(bias[:, query, key], positions.weight[:, bucket(distance)])
            else:
                assert (bias[:, query, key] == -torch.inf).all()


def test_heads_are_split_and_merged_head_slowest() -> None:
    x = torch.arange(3 * 5 * 2 * 4 * 2 * 6).view(3, 5, 2, 4 * 2 * 6)  # t, n, b, h*kinds*E
    first, second = split_heads(x, 2, 6)
    assert first.shape == (2, 3, 4, 5, 6)
    assert torch.equal(second[1, 2, 3, 4], x[2, 4, 1].view(4, 2, 6)[3, 1])
    assert torch.equal(merge_heads([first, second]), x)
    assert torch.equal(merge_heads(list(split_heads(x[0], 2, 6))), x[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotation_keeps_lengths_and_leaves_distances_only(dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 1, 8, dtype=torch.float64)
    # the same vector everywhere
    queries, keys = (x.expand(600, 8).to(dtype) for x in (query, key))
    turned = rotated(keys)
    assert turned.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(turned.norm(dim=-1), keys.norm(dim=-1), rtol=0, atol=tolerance)
    products = rotated(queries, 5).double() @ turned.double().T  # query of position 5 + i, key of position j
    for distance in (-3, 0, 1, 7, 400):
        along = products.diagonal(5 - distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=10 * tolerance)
    assert not torch.allclose(products.diagonal(5)[:9], products.diagonal(4)[:9], rtol=0, atol=1e-3)
    assert torch.equal(rotated(torch.zeros(3, 8), 2), torch.zeros(3, 8))
