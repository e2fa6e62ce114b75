"""Cross entropy in tiles: against torch's, for every way in which tokens and vocabulary fall into tiles."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.model import cross_entropy as tiles
from brt_dist.model import shapes
from brt_dist.model.model import TokenEmbedding, token_losses
from brt_dist.model.parameters import initialize
from brt_dist.planning.stage_time import logits_products
from tests.unit.model.networks import built, small, some_memory, starts_of, tokens_of

TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 0.05, "atol": 0.2},
}


def drawn(vocab: int, dtype: torch.dtype) -> tuple[TokenEmbedding, torch.Tensor]:
    """An embedding, and hidden states (6, 2, 10) for it."""
    embedding = TokenEmbedding(small(vocab_size=vocab)).to(dtype)
    initialize(embedding, 0, "embedding")
    return embedding, (5 * torch.randn(6, 2, 10)).to(dtype).requires_grad_()


def oracle(x: torch.Tensor, embedding: TokenEmbedding, target: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states and weights in float64, and the nats of each token (6, 2) by torch's own cross entropy."""
    exact = [value.detach().double().requires_grad_() for value in (x, embedding.weight)]
    logits = exact[0] @ exact[1][: embedding.vocab_size].T / 10**0.5
    return exact, F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(6, 2)


@pytest.mark.parametrize("vocab", [1, 7, 8, 13, 40])
@pytest.mark.parametrize("tile", [(1024, 4096), (5, 4096), (1024, 8), (5, 6), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_and_gradients(
    vocab: int, tile: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TOKENS", tile[0])
    monkeypatch.setattr(tiles, "COLUMNS", tile[1])
    embedding, x = drawn(vocab, dtype)
    target, direction = torch.randint(vocab, (6, 2)), torch.randn(6, 2)

    losses = embedding.losses(x, target)
    exact, expected = oracle(x, embedding, target)
    tolerance = TOLERANCE[dtype]
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(losses.double(), expected, **tolerance)
    ours = torch.autograd.grad((losses * direction).sum(), [x, embedding.weight])
    theirs = torch.autograd.grad((expected * direction).sum(), exact)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, **tolerance)
    assert torch.count_nonzero(ours[1][vocab:]) == 0


def test_in_one_tile_they_are_those_of_whole_logits() -> None:
    embedding = TokenEmbedding(small())
    initialize(embedding, 0, "embedding")
    x, target = torch.randn(6, 2, 10).requires_grad_(), torch.randint(23, (6, 2))
    found, expected = embedding.losses(x, target), token_losses(embedding.logits(x), target.T).T
    assert torch.equal(found, expected)
    direction = torch.randn(6, 2)
    ours, theirs = (
        torch.autograd.grad((losses * direction).sum(), [x, embedding.weight]) for losses in (found, expected)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("vocab", [1, 7, 8, 13, 40])
@pytest.mark.parametrize("tile", [(1024, 4096), (5, 4096), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_sum_of_the_tokens_that_count(
    vocab: int, tile: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether forward makes the gradients (a tile has the vocabulary) or backward."""
    monkeypatch.setattr(tiles, "TOKENS", tile[0])
    monkeypatch.setattr(tiles, "COLUMNS", tile[1])
    monkeypatch.setattr(shapes, "TILE_COLUMNS", tile[1])
    embedding, x = drawn(vocab, dtype)
    target, counted = torch.randint(vocab, (6, 2)), torch.rand(6, 2) < 0.6

    loss = embedding.summed_loss(x, target, counted)
    with torch.no_grad():
        torch.testing.assert_close(embedding.summed_loss(x, target, counted), loss)
    exact, nats = oracle(x, embedding, target)
    tolerance = TOLERANCE[dtype]
    expected = nats.masked_fill(~counted, 0.0).sum()
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and loss.dim() == 0
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    ours = torch.autograd.grad(-3 * loss, [x, embedding.weight])
    theirs = torch.autograd.grad(-3 * expected, exact)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, **{**tolerance, "atol": 3 * tolerance["atol"]})
    assert torch.count_nonzero(ours[0][~counted]) == torch.count_nonzero(ours[1][vocab:]) == 0


def test_no_logits_are_made_twice_where_a_tile_has_the_vocabulary() -> None:
    rows = shapes.TILE_COLUMNS
    with torch.device("meta"):
        embedding = TokenEmbedding(small(vocab_size=rows))
        x, target = torch.empty(6, 2, 10).requires_grad_(), torch.zeros(6, 2, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            embedding.summed_loss(x, target, target == 0).backward()
    assert counter.get_total_flops() == 3 * 2 * 12 * 10 * rows
    assert [sum(logits_products(*given)) for given in ((rows, 1), (rows + 8, 1), (rows, 2))] == [3, 4, 4]


@pytest.mark.parametrize("feedback", [False, True])
def test_a_model_adds_up_the_tokens_that_count(feedback: bool) -> None:
    config = small(feedback=feedback)
    model = built(config, dtype=torch.float32)
    arguments = tokens_of(config, 2, 3), some_memory(model, 2), starts_of([0, 0, 1], [1, 0, 0])
    target = tokens_of(config, 2, 3, seed=1)
    counted = torch.rand(target.shape) < 0.7
    found, _ = model(*arguments, target=target, counted=counted)
    nats, _ = model(*arguments, target=target)
    expected = nats.masked_fill(~counted, 0.0).sum()
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_model_with_a_target_gives_the_losses_of_its_logits(feedback: bool) -> None:
    config = small(feedback=feedback)
    model = built(config, dtype=torch.float32)
    arguments = tokens_of(config, 2, 3), some_memory(model, 2), starts_of([0, 0, 1], [1, 0, 0])
    target = tokens_of(config, 2, 3, seed=1)
    losses, memory = model(*arguments, target=target)
    logits, same = model(*arguments)
    assert losses.shape == target.shape
    torch.testing.assert_close(losses, token_losses(logits, target))
    assert all(torch.equal(memory[0][name], same[0][name]) for name in same[0])


def test_large_logits_stay_finite() -> None:
    embedding = TokenEmbedding(small(vocab_size=13))
    initialize(embedding, 0, "embedding")
    x = torch.full((2, 1, 10), 1e6).requires_grad_()
    losses = embedding.losses(x, torch.tensor([[0], [12]]))
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(x.grad).all() and torch.isfinite(embedding.weight.grad).all()


def test_a_second_backward_pass_through_the_sum_is_refused() -> None:
    """The first one scales the gradients in place."""
    embedding = TokenEmbedding(small())
    initialize(embedding, 0, "embedding")
    x, target = torch.randn(6, 2, 10).requires_grad_(), torch.randint(23, (6, 2))
    loss = 2 * embedding.summed_loss(x, target, target < 20)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
