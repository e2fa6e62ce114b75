"""The delta rule: a float64 loop, what it can do without training, and the adapter of the kernels.

The authors' numbers are in tests/golden/data/kinds; what every kind of mixer must do is in test_every_mixer.py.
"""

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.model import fla_kernels
from brt_dist.model.delta_rule import delta_rule
from brt_dist.model.mixers.linear import linear_attention

Rule = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(gated: bool, chunk: int = 5, blocks: int = 4) -> Rule:
    shape = (3, blocks, 2, chunk)
    keys = torch.nn.functional.normalize(draw(1, *shape, 3), dim=-1)
    decays = -draw(4, *shape).exp() if gated else None
    starts = torch.zeros(3, blocks, dtype=torch.bool)
    starts[0, blocks // 2] = starts[1, 0] = starts[1, blocks - 1] = True
    return (
        draw(0, *shape, 3),
        keys,
        draw(2, *shape, 4),
        2 * draw(3, *shape).sigmoid(),
        decays,
        draw(5, 3, 2, 3, 4),
        starts,
    )


def loop(
    queries: Tensor, keys: Tensor, values: Tensor, rates: Tensor, decays: Tensor | None, state: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """As `delta_rule`, one token after the other."""
    streams, blocks, heads, chunk, size = queries.shape
    out, after = torch.empty_like(values), torch.empty_like(state)
    for stream in range(streams):
        for head in range(heads):
            s = state[stream, head]
            for block in range(blocks):
                s = torch.zeros_like(s) if starts[stream, block] else s
                for token in range(chunk):
                    here = (stream, block, head, token)
                    s = s if decays is None else s * decays[here].exp()
                    s = s + torch.outer(keys[here], rates[here] * (values[here] - s.t() @ keys[here]))
                    out[here] = s.t() @ queries[here] * size**-0.5
            after[stream, head] = s
    return out, after


@pytest.mark.parametrize("gated", [False, True])
def test_a_loop_over_tokens_with_documents_that_start_anywhere(gated: bool) -> None:
    given = inputs(gated)
    differentiable = [tensor.requires_grad_() for tensor in given[:-1] if tensor is not None]
    ours, theirs = delta_rule(*given), loop(*given)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-12
    directions = [draw(7, *tensor.shape) for tensor in ours]
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, directions, strict=True)), differentiable)
        for found in (ours, theirs)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-10


def test_strong_decay_stays_finite() -> None:
    """exp of the sums of decays over a chunk under- and overflows; neither value nor gradient may."""
    queries, keys, values, rates, decays, state, starts = inputs(True, chunk=64, blocks=2)
    decays = (decays * 100).float().requires_grad_()  # type: ignore[operator]
    read, after = delta_rule(
        queries.float(), keys.float(), values.float(), rates.float(), decays, state.float(), starts
    )
    (gradient,) = torch.autograd.grad(read.sum() + after.sum(), decays)
    assert all(tensor.isfinite().all() for tensor in (read, after, gradient))


def written(keys: Tensor, values: Tensor, rates: Tensor, queries: Tensor) -> Tensor:
    """What is read after all tokens: (n, M) of queries (n, E), the last token's query being asked of the last state."""
    blank = torch.zeros(1, 1, keys.shape[-1], values.shape[-1], dtype=keys.dtype)
    starts = torch.zeros(1, 1, dtype=torch.bool)
    shaped = [tensor[None, None, None] for tensor in (keys, keys, values, rates)]
    _, state = delta_rule(*shaped, None, blank, starts)
    return queries @ state[0, 0]


def test_a_second_value_of_a_key_replaces_the_first_where_linear_attention_adds() -> None:
    keys = torch.nn.functional.normalize(draw(0, 2, 8), dim=-1)
    keys[1] = torch.nn.functional.normalize(keys[1] - keys[0] * (keys[0] @ keys[1]), dim=-1)
    values, order = draw(1, 3, 8), [0, 1, 0]
    read = written(keys[order], values, torch.ones(3, dtype=torch.float64), keys[:1])
    assert (read[0] - values[2]).abs().max() < 1e-12
    shaped = [tensor[None, None, None] for tensor in (keys[order], keys[order], values)]
    _, sums = linear_attention(*shaped, torch.zeros(1, 1, 8, 9, dtype=torch.float64), torch.zeros(1, 1).bool())
    assert (keys[0] @ sums[0, 0, :, :-1] - values[2]).abs().max() > 0.1


def test_parity_by_negative_eigenvalues() -> None:
    """beta 2 at each one-bit turns the state round: after any number of bits its sign is their parity."""
    bits = torch.randint(2, (200,), generator=torch.Generator().manual_seed(3))
    key = torch.ones(1, dtype=torch.float64)
    length = len(bits)
    keys, values = key.expand(1, 4, 1, 50, 1), torch.zeros(1, 4, 1, 50, 1, dtype=torch.float64)
    rates = (2.0 * bits).double().view(1, 4, 1, 50)
    begin = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    read, _ = delta_rule(keys, keys, values, rates, None, begin, torch.zeros(1, 4, dtype=torch.bool))
    assert read.flatten().tolist() == [1.0 - 2.0 * (int(bits[: n + 1].sum()) % 2) for n in range(length)]


@pytest.mark.parametrize("gated", [False, True])
def test_the_adapter_of_the_kernels_cuts_streams_where_documents_start(
    monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    """With a loop in the place of fla's kernels: no GPU here."""

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None, *, initial_state: Tensor,
        output_final_state: bool, cu_seqlens: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert q.shape[0] == 1 and output_final_state
        assert len(initial_state) == len(cu_seqlens) - 1
        read, left = [], []
        for piece, (begin, end) in enumerate(pairwise(cu_seqlens)):
            here: list[Any] = [
                None if x is None else x[:, begin:end].transpose(1, 2).unsqueeze(1) for x in (q, k, v, beta, g)
            ]
            out, state = loop(*here, initial_state[piece : piece + 1], torch.zeros(1, 1, dtype=torch.bool))
            read.append(out[:, 0].transpose(1, 2))
            left.append(state)
        return torch.cat(read, 1), torch.cat(left)

    for name, function in (("delta_rule", "chunk_delta_rule"), ("gated_delta_rule", "chunk_gated_delta_rule")):
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, function, kernel)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    given = inputs(gated)
    for one, other in zip(fla_kernels.delta_rule(*given), delta_rule(*given), strict=True):
        assert (one - other).abs().max() < 1e-12


def test_the_kernels_are_for_cuda_only() -> None:
    assert not fla_kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
