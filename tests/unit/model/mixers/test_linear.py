"""Linear attention against a float64 loop, and on a task that needs its memory.

The authors' numbers are in tests/golden/data/kinds; what every kind of mixer must do is in test_every_mixer.py.
"""

import math

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.mixers.linear import EPSILON, linear_attention, phi
from brt_dist.model.model import BlockRecurrentModel, loss_sum


def loop(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """As `linear_attention`, one token after the other."""
    streams, blocks, heads, window = queries.shape[:4]
    out = torch.empty_like(values)
    after = torch.empty_like(state)
    for stream in range(streams):
        for head in range(heads):
            sums, normaliser = state[stream, head, :, :-1].clone(), state[stream, head, :, -1].clone()
            for block in range(blocks):
                if starts[stream, block]:
                    sums, normaliser = torch.zeros_like(sums), torch.zeros_like(normaliser)
                for token in range(window):
                    here = (stream, block, head, token)
                    sums = sums + torch.outer(keys[here], values[here])
                    normaliser = normaliser + keys[here]
                    out[here] = (queries[here] @ sums) / (queries[here] @ normaliser + EPSILON)
            after[stream, head] = torch.cat([sums, normaliser[:, None]], 1)
    return out, after


def test_a_loop_over_tokens_with_documents_that_start_anywhere() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries, keys, values = phi(draw(3, 4, 2, 5, 3)), phi(draw(3, 4, 2, 5, 3)), draw(3, 4, 2, 5, 3)
    state = draw(3, 2, 3, 4).abs()
    starts = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    inputs = [tensor.requires_grad_() for tensor in (queries.detach(), keys.detach(), values, state)]
    ours, theirs = linear_attention(*inputs, starts), loop(*inputs, starts)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-12
    directions = [draw(*tensor.shape) for tensor in ours]
    gradients = [
        torch.autograd.grad(
            sum((a * b).sum() for a, b in zip(found, directions, strict=True)), inputs, retain_graph=True
        )
        for found in (ours, theirs)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-11


def test_a_small_model_learns_to_copy() -> None:
    """Nine symbols, then the same nine: each of the second half is known from the first, and from nowhere else."""
    torch.manual_seed(0)
    given = ModelConfig.model_validate(
        {
            "layers": 2,
            "width": 64,
            "heads": 4,
            "head_dim": 16,
            "vocab_size": 12,
            "window": 20,
            "dropout": 0.0,
            "mixers": {"linear": {}},
            "ffns": {"relu": {"width": 96}},
        }
    )
    model = BlockRecurrentModel(given, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    starts = torch.ones(64, 1, dtype=torch.bool)
    for _ in range(400):
        half = torch.stack([torch.randperm(10)[:9] for _ in range(64)])
        tokens = torch.cat([torch.full((64, 1), 10), half, torch.full((64, 1), 11), half], 1)
        mask = torch.zeros(64, 20, dtype=torch.bool)
        mask[:, 11:19] = True
        target = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
        logits, _ = model(tokens, model.blank_memory(64), starts)
        loss = loss_sum(logits, target, mask) / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(10)  # of a guess among the ten symbols
