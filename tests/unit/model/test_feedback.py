"""Feedback: every layer attends to the state of the last recurrent layer, and the stack runs block by block."""

from typing import Any

import pytest
import torch

from brt_dist.errors import ConfigError
from brt_dist.model.dropout import Dropout
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import load, logical_parameters
from tests.unit.model.networks import built, fields, gradients, small, some_memory, starts_of, tokens_of


def without_feedback(model: BlockRecurrentModel) -> BlockRecurrentModel:
    """Set the weights of all fed back attention to zero; the same network as one that has no feedback."""
    config = model.config.model_copy(update={"feedback": False})
    plain = built(config)
    tensors = {}
    for parameter in logical_parameters(model):
        tensor = parameter.whole([parameter.local.detach()])
        index, _, name = parameter.name.removeprefix("layers.").partition(".")
        if index.isdigit() and int(index) not in config.feeding_layers():
            if name == "tokens.merge.weight":  # columns (head, kind, E)
                parameter.local.data.unflatten(1, (config.heads, 2, config.head_dim))[:, :, 1] = 0
                tensor = tensor.unflatten(1, (config.heads, 2, config.head_dim))[:, :, 0].flatten(1)
            elif name == "tokens.projections.weight":  # rows (head, kind, E)
                tensor = tensor.unflatten(0, (config.heads, 4, config.head_dim))[:, :3].flatten(0, 2)
        tensors[parameter.name] = tensor
    load(plain, tensors)
    return plain


@pytest.mark.parametrize("recurrent", [(1,), (0, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("window", [4, 96])  # 96: blocks begin within the masks' tile of 128 tokens
def test_block_by_block_is_all_blocks_at_once_where_nothing_is_fed_back(
    recurrent: tuple[int, ...], rate: float, window: int
) -> None:
    """Outputs, memory, dropout masks, and the gradients of everything that both networks have."""
    config = small(feedback=True, recurrent_layers=recurrent, window=window, clear_state=window == 96)
    model = built(config)
    plain = without_feedback(model)
    tokens, memory, starts = tokens_of(config, 2, 4), some_memory(model, 2), starts_of([0, 0, 1, 0], [1, 0, 0, 0])
    dropout = Dropout(rate, 3, 5, (2, 7))

    logits, after = model(tokens, memory, starts, dropout)
    expected, expected_after = plain(tokens, memory, starts, dropout)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(fields(after), fields(expected_after), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, truth = (gradients(m, (y * direction)[..., :23].sum()) for m, y in ((model, logits), (plain, expected)))
    for name, gradient in truth.items():
        if gradient.shape == found[name].shape:
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def test_the_lower_layers_attend_to_the_state_of_the_last_recurrent_layer() -> None:
    """And only to it: the first layer of a block sees the state before the block, and no state of another layer."""
    config = small(layers=4, recurrent_layers=(1, 3), feedback=True)
    model = built(config)
    tokens, starts = tokens_of(config, 1, 1), starts_of([0])
    memory = some_memory(model, 1)
    first: list[torch.Tensor] = []
    model.layers[0].register_forward_hook(lambda _module, _arguments, result: first.append(result[0].detach()))

    def first_layer(changed: int | None) -> torch.Tensor:
        given = [
            {**layer, "state": layer["state"] + 1} if index == changed and "state" in layer else layer
            for index, layer in enumerate(memory)
        ]
        model(tokens, given, starts)
        return first.pop()

    assert torch.equal(first_layer(None), first_layer(1))
    assert not torch.allclose(first_layer(None), first_layer(3))


def test_gradient_flows_down_and_through_the_blocks() -> None:
    """The loss of the second block reaches the first block's last layers by way of the state alone."""
    config = small(layers=2, recurrent_layers=(1,), feedback=True)
    model = built(config)
    logits, _ = model(tokens_of(config, 1, 2), model.blank_memory(1), starts_of([1, 0]))
    found = gradients(model, logits[config.window :, :, : config.vocab_size].square().sum())
    assert torch.count_nonzero(found["layers.1.cell.tail.update.output.weight"]) > 0
    # of the feedback's queries in the layer below
    rows = found["layers.0.tokens.projections.weight"].unflatten(0, (config.heads, 4, config.head_dim))
    assert torch.count_nonzero(rows[:, 3]) == rows[:, 3].numel()


@pytest.mark.parametrize("changes", [{"feedback": True}, {}])
def test_a_layer_is_given_the_state_with_feedback_and_only_then(changes: dict[str, Any]) -> None:
    model = built(small(**changes))
    layer, recurrent = model.layers[0], model.layers[1]
    x, memory, starts = torch.zeros(4, 1, 10, dtype=torch.float64), layer.blank_memory(1), starts_of([1])
    entered = recurrent.mixer.cell(recurrent.blank_memory(1)["state"], starts)
    with pytest.raises(ConfigError, match="with the state it enters"):
        layer(x, memory, starts, None, None if changes else entered)
    with pytest.raises(ConfigError, match="runs on one block"):
        layer(x.repeat(2, 1, 1), memory, starts_of([1, 0]), None, entered)
