"""The fast path against the plain float64 version, on every variant and on networks and inputs drawn at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.config.schema import ModelConfig
from brt_dist.export.reference import to_reference
from brt_dist.model.model import full_logits
from brt_dist.model.naive import read_segment
from brt_dist.model.parameters import logical_parameters
from tests.unit.model.networks import ALL_CELLS, built, fields, gradients, some_memory, starts_of, tokens_of


@st.composite
def networks(draw: st.DrawFn) -> ModelConfig:
    layers = draw(st.integers(1, 3))
    recurrent = tuple(draw(st.sets(st.integers(0, layers - 1), max_size=2)))
    positions = draw(st.sampled_from(["t5", "rotary", "none"]))
    return ModelConfig(
        layers=layers,
        width=draw(st.integers(3, 9)),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([2, 4, 6]) if positions == "rotary" else st.integers(1, 5)),
        mlp_width=draw(st.integers(2, 9)),
        vocab_size=draw(st.integers(2, 30)),
        window=draw(st.integers(1, 5)),
        states=draw(st.integers(1, 6)),
        recurrent_layers=recurrent,
        cell=draw(st.sampled_from(["skip", "single", "dual"])),
        gate=draw(st.sampled_from(["fixed", "lstm"])),
        feedback=bool(recurrent) and draw(st.booleans()),
        clear_state=draw(st.booleans()),
        positions=positions,
        logit_scale=draw(st.sampled_from(["width", "vocab"])),
        attention_scale=draw(st.sampled_from(["absolute", "raw"])),
        dropout=0.0,
    )


@settings(max_examples=60, deadline=None)
@given(
    config=networks(),
    blocks=st.integers(1, 4),
    streams=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_outputs_memory_and_gradients_equal_the_oracle(
    config: ModelConfig, blocks: int, streams: int, seed: int, data: st.DataObject
) -> None:
    starts = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=blocks, max_size=blocks), min_size=streams, max_size=streams)
        )
    )
    compare(config, starts, seed)


LAYERS = {
    "one": {"recurrent_layers": (-3,)},
    "two, more states than tokens": {"recurrent_layers": (0, 2), "states": 11},
    "feedback": {"recurrent_layers": (-3,), "feedback": True},
    "feedback, two": {"recurrent_layers": (0, 2), "states": 11, "feedback": True},
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize(("cell", "gate"), ALL_CELLS)
def test_every_variant_equals_the_oracle(cell: str, gate: str, layers: dict[str, object]) -> None:
    sizes = dict(layers=4, width=12, heads=2, head_dim=8, mlp_width=20, vocab_size=31, window=6, states=6, dropout=0.0)
    config = ModelConfig.model_validate({**sizes, "cell": cell, "gate": gate, **layers})
    compare(config, starts_of([1, 0, 0], [0, 1, 0]), 1)


def compare(config: ModelConfig, starts: torch.Tensor, seed: int) -> None:
    model, (streams, blocks) = built(config, seed), starts.shape
    tokens, memory = tokens_of(config, streams, blocks, seed), some_memory(model, streams, seed)
    weights = {
        name: tensor.clone().requires_grad_()
        for name, tensor in to_reference(
            {p.name: p.whole([p.local.detach()]) for p in logical_parameters(model)}, config
        ).items()
    }

    local_logits, after = model(tokens, memory, starts)
    logits = full_logits(local_logits, config.vocab_size)
    expected_logits, expected_after = read_segment(weights, config, tokens, memory, starts)

    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(fields(after), fields(expected_after), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-10)
        assert not ours.requires_grad

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = to_reference(gradients(model, (logits * direction).sum()), config)
    theirs = torch.autograd.grad((expected_logits * direction).sum(), list(weights.values()), materialize_grads=True)
    for name, expected in zip(weights, theirs, strict=True):
        torch.testing.assert_close(ours[name], expected, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")
