"""Layers: purity, types, and what they refuse."""

import pytest
import torch

from brt_dist.errors import ConfigError
from brt_dist.model.gates import FixedGate, LSTMGate
from brt_dist.model.layers import Layer
from brt_dist.model.linear import megatron_config
from brt_dist.model.model import BlockRecurrentModel, TokenEmbedding
from brt_dist.model.parameters import initialize
from tests.unit.model.networks import ALL_CELLS, built, fields, small, some_memory, starts_of, tokens_of


@pytest.mark.parametrize(("cell", "gate"), ALL_CELLS)
def test_a_forward_changes_nothing_and_can_be_repeated(cell: str, gate: str) -> None:
    config = small(cell=cell, gate=gate)
    model = built(config, dtype=torch.float32)
    tokens, memory, starts = tokens_of(config, 2, 3), some_memory(model, 2), starts_of([0, 1, 0], [1, 0, 0])
    inputs = [tokens, starts, *fields(memory), *model.parameters(), *model.buffers()]
    copies = [tensor.clone() for tensor in inputs]
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}

    first, first_memory = model(tokens, memory, starts)
    second, second_memory = model(tokens, memory, starts)

    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(fields(first_memory), fields(second_memory), strict=True))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes


def test_memory_is_cut_off_and_does_not_keep_the_segment_alive() -> None:
    config = small()
    model = built(config)
    _, memory = model(tokens_of(config, 1, 5), model.blank_memory(1), starts_of([1, 0, 0, 0, 0]))
    for field in fields(memory):
        assert not field.requires_grad
        assert field.is_contiguous()
        assert field.untyped_storage().nbytes() == field.numel() * field.element_size()


@pytest.mark.parametrize(("cell", "gate"), ALL_CELLS)
def test_bf16_is_near_fp32_and_carries_the_state_in_fp32(cell: str, gate: str) -> None:
    config = small(cell=cell, gate=gate, width=32, head_dim=16, mlp_width=64)
    exact, rounded = BlockRecurrentModel(config, seed=1), BlockRecurrentModel(config, seed=1).bfloat16()
    tokens, starts = tokens_of(config, 2, 6), starts_of([1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0])
    logits, memory = rounded(tokens, rounded.blank_memory(2), starts)
    expected, expected_memory = exact(tokens, exact.blank_memory(2), starts)

    assert logits.dtype == torch.bfloat16
    assert memory[1]["state"].dtype == rounded.blank_memory(2)[1]["state"].dtype == torch.float32
    assert memory[1]["keys"].dtype == rounded.blank_memory(2)[1]["keys"].dtype == torch.bfloat16
    visible = config.vocab_size
    assert (logits[..., :visible] - expected[..., :visible]).abs().max() < 0.05 * expected[..., :visible].abs().max()
    assert (memory[1]["state"] - expected_memory[1]["state"]).abs().max() < 0.05 * expected_memory[1][
        "state"
    ].abs().max()


def test_the_state_can_have_the_type_of_the_model() -> None:
    config = small(state_dtype="model")
    model = BlockRecurrentModel(config, seed=1).bfloat16()
    _, memory = model(tokens_of(config, 1, 2), model.blank_memory(1), starts_of([1, 0]))
    assert memory[1]["state"].dtype == model.blank_memory(1)[1]["state"].dtype == torch.bfloat16


@pytest.mark.parametrize("state_dtype", ["float32", "model"])
def test_memory_of_another_precision_is_taken(state_dtype: str) -> None:
    """A run may continue in another precision than it began with."""
    model = BlockRecurrentModel(small(state_dtype=state_dtype), seed=1)
    tokens, starts = tokens_of(model.config, 1, 2), starts_of([0, 0])
    wide = some_memory(model, 1)
    model.bfloat16()
    _, memory = model(tokens, wide, starts)
    blank = model.blank_memory(1)
    assert [field.dtype for field in fields(memory)] == [field.dtype for field in fields(blank)]


def test_a_float32_state_keeps_small_changes_that_bf16_loses() -> None:
    """1 + 2^-10 is not a bf16 number: a state in bf16 would never move."""
    gate = FixedGate(1).bfloat16()
    torch.nn.init.constant_(gate.bias, 8.0)
    state = torch.ones(1, 1, 1)
    after = gate(state, torch.full_like(state, 3.0), state)
    assert after.dtype == torch.float32
    assert 0 < after.item() - 1 < 2**-9


def test_gates_compute_the_published_formulas() -> None:
    torch.manual_seed(0)
    state, z, h = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.randn(3, 2, 5)
    fixed = FixedGate(4)
    torch.nn.init.normal_(fixed.bias)
    g = 1 / (1 + torch.exp(-fixed.bias))
    torch.testing.assert_close(fixed(state, z, h), state * g + z * (1 - g))

    lstm = LSTMGate(5, 4, megatron_config())
    for parameter in lstm.parameters():
        torch.nn.init.normal_(parameter)
    into, forget = lstm.kernels.weight[:4], lstm.kernels.weight[4:]
    i = 1 / (1 + torch.exp(-(h @ into.T + lstm.input_bias - 1)))
    f = 1 / (1 + torch.exp(-(h @ forget.T + lstm.forget_bias + 1)))
    torch.testing.assert_close(lstm(state, z, h), state * f + z * i)


@pytest.mark.parametrize(
    ("shape", "starts", "expected"),
    [
        ((6, 2, 10), (2, 1), "multiple of model.window=4"),
        ((0, 2, 10), (2, 0), "multiple of model.window=4"),
        ((8, 2, 9), (2, 2), "(segment, streams, 10)"),
        ((8, 2, 10), (2, 1), "expected (2, 2)"),
        ((8, 2, 10), (1, 2), "expected (2, 2)"),
        ((8, 3, 10), (3, 2), "memory.state is of shape (2, 5, 10): expected shape (3, 5, 10)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    shape: tuple[int, ...], starts: tuple[int, int], expected: str
) -> None:
    layer = built(small()).layers[1]
    with pytest.raises(ConfigError) as raised:
        layer(torch.zeros(shape, dtype=torch.float64), layer.blank_memory(2), torch.zeros(starts, dtype=torch.bool))
    assert expected in str(raised.value)


def test_memory_of_another_kind_of_layer_is_refused() -> None:
    layers = built(small()).layers
    x, starts = torch.zeros(4, 1, 10, dtype=torch.float64), starts_of([1])
    with pytest.raises(ConfigError, match=r"memory\.state is missing"):
        layers[1](x, layers[0].blank_memory(1), starts)
    memory = layers[0].blank_memory(1)
    with pytest.raises(ConfigError, match=r"memory\.keys"):
        layers[0](x, {"keys": memory["keys"][:, :2], "values": memory["values"]}, starts)
    with pytest.raises(ConfigError, match=r"torch\.bool"):
        layers[0](x, memory, starts.long())


def test_networks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer has a state to feed back"):
        Layer(small(feedback=True, recurrent_layers=()), 0)
    with pytest.raises(ConfigError, match="vocab_size"):
        TokenEmbedding(small(vocab_size=None))


def test_queries_have_at_the_start_the_length_that_the_config_says() -> None:
    config = small().changed({"mixers.window.query_length": 3.0, "mixers.recurrent.query_length": 5.0})
    model = BlockRecurrentModel(config)
    initialize(model, 0)
    lengths = {name: value for name, value in model.named_parameters() if name.endswith("scale.weight")}
    assert len(lengths) == 6  # of tokens in three layers; of tokens for states, states for tokens and for states in one
    for name, value in lengths.items():
        assert torch.all(value == (5.0 if name.startswith("layers.1.") else 3.0)), name
