"""Large states, gradients against finite differences, types of the state."""

from typing import Any

import pytest
import torch

from brt_dist.model.gates import FixedGate, LSTMGate
from brt_dist.model.linear import megatron_config
from brt_dist.model.model import BlockRecurrentModel
from tests.unit.model.networks import VARIANTS, built, fields, small, some_memory, starts_of, tokens_of

RECURRENT = {name: changes for name, changes in VARIANTS.items() if changes.get("recurrent_layers") != ()}
recurrent = pytest.mark.parametrize("variant", RECURRENT.values(), ids=RECURRENT.keys())


@pytest.mark.parametrize("kind", ["fixed", "lstm"])
@pytest.mark.parametrize("state_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_stay_finite(kind: str, state_type: torch.dtype, dtype: torch.dtype) -> None:
    """State, new content, inputs and biases up to 1e4, in all combinations of sign; values and gradients."""
    sizes = torch.tensor([-1e4, -88.0, -1.0, 0.0, 1.0, 88.0, 1e4])
    state, z, h = (axis.reshape(-1, 1, 1) for axis in torch.meshgrid(sizes, sizes, sizes, indexing="ij"))
    gate = FixedGate(1) if kind == "fixed" else LSTMGate(1, 1, megatron_config())
    for parameter in gate.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    gate = gate.to(dtype)
    for bias in (-1e4, 1e4, 0.5):
        for name, parameter in gate.named_parameters():
            if "bias" in name:
                torch.nn.init.constant_(parameter, bias)
        inputs = [state.to(state_type), z.float(), h.to(dtype)]
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        after = gate(*leaves)
        assert after.dtype == state_type
        assert torch.isfinite(after).all()
        # between them, they cannot grow but by the sum of both
        assert (after.float().abs() <= 1.01 * (state.abs() + z.abs())).all()
        found = torch.autograd.grad(after.float().sum(), [*leaves, *gate.parameters()], allow_unused=True)
        assert all(torch.isfinite(gradient).all() for gradient in found if gradient is not None)


@pytest.mark.parametrize("state_dtype", ["float32", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
@recurrent
def test_large_states_stay_finite(variant: dict[str, Any], size: float, dtype: torch.dtype, state_dtype: str) -> None:
    config = small(**variant, state_dtype=state_dtype)
    model = built(config, dtype=dtype)
    memory = [
        {**layer, "state": layer["state"].sign() * size} if "state" in layer else layer
        for layer in some_memory(model, 1)
    ]
    logits, after = model(tokens_of(config, 1, 3), memory, starts_of([0, 0, 0]))
    visible = logits[..., : config.vocab_size].float()
    visible.square().sum().backward()
    assert torch.isfinite(visible).all()
    assert all(torch.isfinite(field).all() for field in fields(after))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradients_are_the_slopes_of_the_loss(variant: dict[str, Any]) -> None:
    """Central differences in float64, a random direction within each parameter."""
    config = small(**variant)
    model = built(config, seed=4)
    tokens, memory, starts = tokens_of(config, 2, 3), some_memory(model, 2), starts_of([0, 1, 0], [0, 0, 0])
    target = tokens_of(config, 2, 3, seed=1)

    def loss() -> torch.Tensor:
        logits, _ = model(tokens, memory, starts)
        return torch.nn.functional.cross_entropy(logits[..., : config.vocab_size].flatten(0, 1), target.T.flatten())

    found = torch.autograd.grad(loss(), list(model.parameters()), materialize_grads=True)
    generator, step = torch.Generator().manual_seed(0), 1e-6
    with torch.no_grad():
        for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            value = parameter.clone()
            parameter.copy_(value + step * direction)
            above = loss()
            parameter.copy_(value - step * direction)
            slope = (above - loss()) / (2 * step)
            parameter.copy_(value)
            expected = (gradient * direction).sum()
            torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("state_dtype", ["float32", "model"])
@recurrent
def test_type_of_the_carried_state_under_bf16(variant: dict[str, Any], state_dtype: str) -> None:
    """Blank, carried, and on its way over many segments; near the float32 network in any case."""
    sizes = dict(width=32, head_dim=16, mlp_width=64)
    config = small(**variant, **sizes, state_dtype=state_dtype)
    exact, rounded = BlockRecurrentModel(config, seed=1), BlockRecurrentModel(config, seed=1).bfloat16()
    expected = torch.float32 if state_dtype == "float32" else torch.bfloat16
    here, there = rounded.blank_memory(1), exact.blank_memory(1)
    for segment in range(4):
        tokens, starts = tokens_of(config, 1, 3, segment), starts_of([segment == 0, 0, 0])
        _, here = rounded(tokens, here, starts)
        _, there = exact(tokens, there, starts)
        for ours, theirs in zip(here, there, strict=True):
            if "state" in ours:
                assert ours["state"].dtype == expected
                assert theirs["state"].dtype == torch.float32
                assert (ours["state"] - theirs["state"]).abs().max() < 0.1 * theirs["state"].abs().max()
    assert [field.dtype for field in fields(here)] == [field.dtype for field in fields(rounded.blank_memory(1))]
