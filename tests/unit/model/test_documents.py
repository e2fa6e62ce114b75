"""Causality, segments, and documents that begin anywhere: what may influence what."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brt_dist.model.memory import Memory
from brt_dist.model.model import full_logits
from tests.unit.model.networks import (
    ALL_CELLS,
    VARIANTS,
    built,
    fields,
    gradients,
    small,
    some_memory,
    starts_of,
    tokens_of,
)

EXACT = dict(rtol=1e-11, atol=1e-11)  # float64; products of other sizes round differently


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"transformer-xl"}))
def test_a_token_changes_no_logits_before_it_and_some_blocks_after(variant: str) -> None:
    config = small(**VARIANTS[variant])
    model, memory, starts = built(config), some_memory(built(config), 1), starts_of([0, 0, 0, 0])
    tokens = tokens_of(config, 1, 4)
    before, _ = model(tokens, memory, starts)
    for position in (0, 5, 11):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % config.vocab_size
        after, _ = model(changed, memory, starts)
        assert torch.equal(after[:position], before[:position])
        assert not torch.allclose(after[position], before[position])
        # further than all windows together reach, so by the state alone
        assert not torch.allclose(after[-1], before[-1], rtol=0, atol=1e-9)


def test_a_token_does_not_attend_to_itself_and_sees_exactly_a_window() -> None:
    config = small(layers=1, recurrent_layers=())
    layer = built(config).layers[0]
    memory = layer.blank_memory(1)
    x = torch.randn(3 * config.window, 1, config.width, dtype=torch.float64)
    mixed = _attention_input_gradient(layer, x, memory)
    for query in range(len(x)):
        for key in range(len(x)):
            visible = query - config.window <= key < query
            assert (mixed[query, key] > 0) == visible, (query, key)


def _attention_input_gradient(layer: torch.nn.Module, x: torch.Tensor, memory: object) -> torch.Tensor:
    """Size of d(attention output of token i)/d(value of token j)."""
    config = layer.model
    heads = layer.mixer.tokens.project(x, None)
    values = heads.values.detach().requires_grad_()
    from brt_dist.model.attention import Window, with_previous_block

    starts = torch.zeros(1, len(x) // config.window, dtype=torch.bool)
    window = Window(
        with_previous_block(heads.keys, memory["keys"], starts), with_previous_block(values, memory["values"], starts)
    )
    out = layer.mixer.tokens.to_tokens(heads, window, None).transpose(2, 3).flatten(1, 2)[0]  # (N, h, E)
    rows = []
    for i in range(len(x)):
        (grad,) = torch.autograd.grad(out[i].sum(), values, retain_graph=True)
        rows.append(grad.transpose(2, 3).flatten(1, 2)[0].abs().sum((-1, -2)))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    cut=st.integers(1, 4),
    starts=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_two_segments_read_like_one(variant: str, cut: int, starts: list[bool], seed: int) -> None:
    config = small(**VARIANTS[variant])
    model = built(config, seed)
    tokens, memory, flags = tokens_of(config, 1, 5, seed), some_memory(model, 1, seed), starts_of(starts)
    whole, after_whole = model(tokens, memory, flags)
    position = cut * config.window
    first, between = model(tokens[:, :position], memory, flags[:, :cut])
    second, after = model(tokens[:, position:], between, flags[:, cut:])
    torch.testing.assert_close(torch.cat([first, second]), whole, **EXACT)
    for ours, theirs in zip(fields(after), fields(after_whole), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@settings(max_examples=25, deadline=None)
@given(variant=st.sampled_from(sorted(VARIANTS)), begin=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_document_within_a_segment_reads_as_it_does_alone(variant: str, begin: int, seed: int) -> None:
    """Outputs, memory and gradients of the second document, against a segment of its own and other memory."""
    config = small(**VARIANTS[variant])
    model = built(config, seed)
    tokens, memory = tokens_of(config, 2, 4, seed), some_memory(model, 2, seed)
    starts = torch.zeros(2, 4, dtype=torch.bool)
    starts[0, begin] = True
    position = begin * config.window

    logits, after = model(tokens, memory, starts)
    alone, after_alone = model(
        tokens[:1, position:], some_memory(model, 1, seed + 1), starts_of([1] + [0] * (3 - begin))
    )
    torch.testing.assert_close(logits[position:, :1], alone, **EXACT)
    for ours, theirs in zip(fields(after), fields(after_alone), strict=True):
        torch.testing.assert_close(ours[:1], theirs, **EXACT)

    direction = torch.randn(alone.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    visible = config.vocab_size
    within = gradients(model, (logits[position:, :1] * direction)[..., :visible].sum())
    expected = gradients(model, (alone * direction)[..., :visible].sum())
    for name, gradient in within.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("cell", "gate"), ALL_CELLS)
def test_nothing_crosses_the_start_of_a_document(cell: str, gate: str) -> None:
    config = small(layers=1, recurrent_layers=(0,), cell=cell, gate=gate)
    layer = built(config).layers[0]
    memory = some_memory(built(config), 1)[0]
    boundary, starts = 2 * config.window, starts_of([0, 0, 1, 0])
    x = torch.randn(4 * config.window, 1, config.width, dtype=torch.float64, requires_grad=True)
    state, keys, values = (memory[name].requires_grad_() for name in ("state", "keys", "values"))
    y, after = layer(x, memory, starts)

    def gradient(outputs: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(outputs.square().sum(), x, retain_graph=True)[0]

    assert torch.count_nonzero(gradient(y[boundary:])[:boundary]) == 0
    assert torch.count_nonzero(gradient(y[:boundary])[boundary:]) == 0
    assert torch.count_nonzero(gradient(y[boundary:])[boundary:]) > 0
    for field in (state, keys, values):
        (found,) = torch.autograd.grad(y[boundary:].sum(), field, retain_graph=True)
        assert torch.count_nonzero(found) == 0
        (found,) = torch.autograd.grad(y[:boundary].sum(), field, retain_graph=True)
        assert torch.count_nonzero(found) > 0

    # not even through numbers that are not numbers
    broken = x.detach().clone()
    broken[:boundary] = float("nan")
    poisoned = {name: torch.full_like(field, float("nan")) for name, field in memory.items()}
    z, after_broken = layer(broken, poisoned, starts)
    assert torch.equal(z[boundary:], y[boundary:])
    for name, ours in after_broken.items():
        assert torch.equal(ours, after[name])


def test_streams_of_a_batch_do_not_meet() -> None:
    config = small()
    model = built(config)
    tokens, memory = tokens_of(config, 3, 2), some_memory(model, 3)
    starts = starts_of([1, 0], [0, 1], [0, 0])
    logits, after = model(tokens, memory, starts)
    for stream in range(3):
        own = [{name: field[stream : stream + 1] for name, field in layer.items()} for layer in memory]
        alone, after_alone = model(tokens[stream : stream + 1], own, starts[stream : stream + 1])
        torch.testing.assert_close(logits[:, stream : stream + 1], alone, **EXACT)
        for ours, theirs in zip(fields(after), fields(after_alone), strict=True):
            torch.testing.assert_close(ours[stream : stream + 1], theirs, **EXACT)


@pytest.mark.parametrize("feedback", [False, True])
def test_cleared_state_forgets_between_segments_and_within_does_not(feedback: bool) -> None:
    config = small(clear_state=True, feedback=feedback)
    model = built(config)
    tokens, starts = tokens_of(config, 1, 2), starts_of([0, 0])
    memory = some_memory(model, 1)
    other = [_with_state(layer, lambda state: state + 1) for layer in memory]
    assert torch.equal(model(tokens, memory, starts)[0], model(tokens, other, starts)[0])

    # what it starts from is the initial state; the cache of tokens goes on
    initial = model.layers[1].mixer.cell.initial_state.detach().expand(1, -1, -1)
    remembering = built(config.changed({"mixers.recurrent.clear_state": False}))
    from_initial = [_with_state(layer, lambda _: initial) for layer in memory]
    torch.testing.assert_close(model(tokens, memory, starts)[0], remembering(tokens, from_initial, starts)[0], **EXACT)
    forgotten = [{**layer, "keys": layer["keys"] + 1} for layer in memory]
    assert not torch.allclose(model(tokens, memory, starts)[0], model(tokens, forgotten, starts)[0])

    changed = tokens.clone()
    changed[0, 0] = (tokens[0, 0] + 1) % config.vocab_size
    assert not torch.allclose(model(changed, memory, starts)[0][-1], model(tokens, memory, starts)[0][-1])


def test_full_logits_are_batch_first_and_without_padding() -> None:
    config = small()
    model = built(config)
    logits, _ = model(tokens_of(config, 2, 1), model.blank_memory(2), starts_of([1], [1]))
    assert full_logits(logits, config.vocab_size).shape == (2, config.window, config.vocab_size)


def _with_state(memory: Memory, change: Callable[[Tensor], Tensor]) -> Memory:
    return {**memory, "state": change(memory["state"])} if "state" in memory else memory
