"""The delta rule: a float64 loop, what it can do without training, and the adapter of the kernels.

The authors' numbers are in tests/golden/data/kinds; what every kind of mixer must do is in test_every_mixer.py.
"""

import math
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model import fla_kernels
from brt_dist.model.delta_rule import delta_rule
from brt_dist.model.mixers.gated_delta import first_bias, first_log_rate
from brt_dist.model.mixers.linear import linear_attention
from tests.unit.model.networks import built

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


@pytest.mark.parametrize("gated", [False, True])
def test_bf16_inputs_are_read_in_float32(gated: bool) -> None:
    """What is left is the rounding of the inputs."""
    given = [
        tensor.bfloat16() if tensor is not None and tensor.is_floating_point() else tensor for tensor in inputs(gated)
    ]
    exact = [tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in given]
    ours, theirs = delta_rule(*given), loop(*exact)  # type: ignore[arg-type]
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 1e-5


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


def test_first_decays_are_those_of_the_authors() -> None:
    """exp(a) uniform up to 16; softplus(b) from 0.001 to 0.1, uniform in its logarithm."""
    numbers = torch.tensor([1e-6, 0.25, 0.5, 0.75, 1 - 1e-6], dtype=torch.float64)
    assert first_log_rate(numbers).exp() == pytest.approx(16 * numbers)
    steps = torch.nn.functional.softplus(first_bias(numbers)).log()
    assert steps == pytest.approx(math.log(1e-3) + numbers * math.log(100), abs=1e-9)


def test_the_layer_is_the_definition() -> None:
    """One layer of `gated_delta` against a loop over tokens from the maps of its parameters."""
    sizes = {"layers": 1, "width": 8, "heads": 2, "head_dim": 3, "vocab_size": 24, "window": 4, "dropout": 0.0}
    mixer = {"kind": "gated_delta", "value_dim": 5, "negative_eigenvalues": True}
    given = ModelConfig.model_validate({**sizes, "mixers": {"m": mixer}, "ffns": {"relu": {"width": 8}}})
    module = built(given).layers[0].mixer
    p: dict[str, Tensor] = {name: value.detach() for name, value in module.named_parameters()}
    x = draw(0, 12, 1, 8)
    tokens = x[:, 0] * torch.rsqrt(x[:, 0].square().mean(-1, keepdim=True) + 1e-6) * p["norm.weight"]
    heads = torch.cat(
        [(tokens @ p["queries_keys.weight"].t()).view(12, 2, 6), (tokens @ p["values.weight"].t()).view(12, 2, 5)], -1
    )
    kernel, rates = p["convolution.weight"].view(2, 11, 4), (tokens @ p["rates.weight"].t()).view(12, 2, 2)
    gates, silu = (tokens @ p["gate.weight"].t()).view(12, 2, 5), torch.nn.functional.silu
    expected = torch.zeros(12, 8, dtype=torch.float64)
    for head in range(2):
        s, outputs = torch.zeros(3, 5, dtype=torch.float64), p["output.weight"][:, 5 * head : 5 * head + 5]
        for n in range(12):
            seen = sum(kernel[head, :, 3 - j] * heads[n - j, head] for j in range(min(4, n + 1)))
            q, k, v = silu(seen).split([3, 3, 5])
            q, k = (y / (y.square().sum() + 1e-6).sqrt() for y in (q, k))
            slope = torch.nn.functional.softplus(rates[n, head, 1] + p["decay.bias"][head])
            s = s * torch.exp(-p["decay.log_rate"][head].exp() * slope)
            s = s + torch.outer(k, 2 * rates[n, head, 0].sigmoid() * (v - s.t() @ k))
            o = s.t() @ q / 3**0.5
            o = o * torch.rsqrt(o.square().mean() + 1e-6) * p["head_norm.weight"] * silu(gates[n, head])
            expected[n] += outputs @ o
    starts, memory = torch.tensor([[True, False, False]]), built(given).blank_memory(1)[0]
    assert (module(x, memory, starts, None)[0][:, 0] - expected).abs().max() < 1e-12


def test_the_kernels_are_for_cuda_only() -> None:
    assert not fla_kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
