"""The Block-State Transformer: filters against a loop over tokens, contexts against their definition, and causality."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.block_state import BlockStateAttention
from brt_dist.model.filters import DiagonalFilters, UnstructuredFilters, convolved
from brt_dist.model.linear import megatron_config
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import initialize
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, gradients, starts_of, tokens_of

CONTEXTS = ("single_head", "multi_head", "multi_filter")
UNSTRUCTURED = {"filter": "unstructured", "carry": False}


def network(**bst: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": 2, "width": 10, "heads": 2, "head_dim": 6, "vocab_size": 24, "window": 4, "dropout": 0.0,
            "mixers": {"window": {}, "bst": {"layers": [1], "context_filters": 5, "filter_states": 6, **bst}},
            "ffns": {"relu": {"width": 14}},
        }
    )  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def filters() -> Iterator[DiagonalFilters]:
    made = DiagonalFilters(3, 4, 6, None, megatron_config())
    initialize(made, 1)
    with torch.no_grad():
        made.log_dt.add_(1.0)  # faster, so that states and decays are of a size
        made.detuning.add_(0.3 * torch.randn(made.detuning.shape, generator=torch.Generator().manual_seed(2)))
    yield made.double()


def loop(filters: DiagonalFilters, u: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """s <- exp(dt A) s + u and y = 2 Re(C (exp(dt A) - 1)/A · s), one token after the other."""
    decay = -filters.log_decay.exp()
    imaginary = torch.pi * torch.arange(decay.shape[1], dtype=torch.float64) + filters.detuning
    poles = torch.complex(decay, imaginary).view(3, 4, -1)
    c = torch.view_as_complex(filters.read.view(3, 4, -1, 2))
    dt = filters.log_dt.exp().view(3, 4, 1)
    step, out = torch.exp(dt * poles), c * (torch.exp(dt * poles) - 1) / poles
    streams, blocks, window, _ = u.shape
    y, after = [], []
    for stream in range(streams):
        s = torch.view_as_complex(state[stream])
        for block in range(blocks):
            if starts[stream, block]:
                s = torch.zeros_like(s)
            for token in range(window):
                s = step * s + u[stream, block, token][:, None]
                y.append(2 * (out * s).sum(-1).real)
        after.append(torch.view_as_real(s))
    return torch.stack(y).view(streams, blocks, window, 3, 4).permute(0, 1, 3, 4, 2), torch.stack(after)


def test_convolution_is_recurrence_with_documents_that_start_anywhere(filters: DiagonalFilters) -> None:
    u, state = draw(2, 4, 5, 4), draw(2, 3, 4, 3, 2, seed=1)
    starts = starts_of([0, 0, 1, 0], [1, 0, 0, 1])
    expected, after = loop(filters, u, state, starts)
    whole, left = filters(u, state, starts, last=False)
    assert (whole - expected).abs().max() < 1e-10
    assert (left - after).abs().max() < 1e-10
    ends, left = filters(u, state, starts, last=True)
    assert (ends - expected[..., -1]).abs().max() < 1e-10
    assert (left - after).abs().max() < 1e-10
    gradient = [
        torch.autograd.grad((y * draw(*y.shape, seed=3)).sum(), list(filters.parameters())) for y in (whole, expected)
    ]
    for one, other in zip(*gradient, strict=True):
        assert (one - other).abs().max() < 1e-8 * other.abs().max()


def test_one_long_convolution_is_the_same(filters: DiagonalFilters) -> None:
    u, blank = draw(1, 6, 5, 4), torch.zeros(1, 3, 4, 3, 2, dtype=torch.float64)
    starts = torch.zeros(1, 6, dtype=torch.bool)
    y, _ = filters(u, blank, starts, last=False)
    long = convolved(u.flatten(1, 2).transpose(1, 2).unsqueeze(1), filters.space().kernel(30))
    assert (y.permute(0, 2, 3, 1, 4).flatten(3) - long).abs().max() < 1e-10
    first, between = filters(u[:, :2], blank, starts[:, :2], last=False)
    second, _ = filters(u[:, 2:], between, starts[:, 2:], last=False)
    assert (torch.cat([first, second], 1) - y).abs().max() < 1e-10


def test_unstructured_filters_reach_back_to_the_start_of_the_document() -> None:
    made = UnstructuredFilters(2, 3, 0, None, megatron_config())
    initialize(made, 1)
    made, u = made.double(), draw(2, 4, 5, 3)
    starts = starts_of([0, 0, 1, 0], [1, 0, 0, 0])
    kernel, document = made.kernel(20), starts.cumsum(1)
    expected = torch.zeros(2, 20, 2, 3, dtype=torch.float64)
    flat = u.flatten(1, 2)
    for stream in range(2):
        for token in range(20):
            for before in range(token + 1):
                if document[stream, token // 5] == document[stream, before // 5]:
                    expected[stream, token] += kernel[:, :, token - before] * flat[stream, before]
    y, _ = made(u, torch.zeros(0), starts, last=False)
    assert (y.permute(0, 1, 4, 2, 3).flatten(1, 2) - expected).abs().max() < 1e-10
    ends, _ = made(u, torch.zeros(0), starts, last=True)
    assert torch.equal(ends, y[..., -1])


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("kind", [{}, UNSTRUCTURED], ids=["s4d", "unstructured"])
def test_causality_segments_and_the_start_of_a_document(contexts: str, kind: dict[str, Any]) -> None:
    config = network(contexts=contexts, **kind)
    model = built(config)
    tokens, blank = tokens_of(config, 2, 6), model.blank_memory(2)
    starts = starts_of([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])
    whole, after = model(tokens, blank, starts)
    for first in (13, 14, 16):  # within a block, and at its beginning
        changed = tokens.clone()
        changed[:, first:] = (changed[:, first:] + 1) % 24
        other = model(changed, blank, starts)[0]
        assert (other[:first] - whole[:first]).abs().max() < 1e-12  # transforms mix rounding, and nothing else
        assert (other[first:] - whole[first:]).abs().max() > 1e-3

    if not kind:
        one, between = model(tokens[:, :12], blank, starts[:, :3])
        two, end = model(tokens[:, 12:], between, starts[:, 3:])
        assert (torch.cat([one, two]) - whole).abs().max() < 1e-10
        for left, right in zip(end, after, strict=True):
            assert all((left[name] - right[name]).abs().max() < 1e-10 for name in right)

    alone = model(tokens[:, 12:], blank, starts[:, :3])[0]
    starts[:, 3] = True
    assert (model(tokens, blank, starts)[0][12:] - alone).abs().max() < 1e-10


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_tokens_see_far_beyond_their_window(contexts: str) -> None:
    """Two layers of windows of 4 reach 8 tokens back; the filters reach the first token."""
    config = network(contexts=contexts)
    model = built(config)
    tokens, starts = tokens_of(config, 1, 6), starts_of([1, 0, 0, 0, 0, 0])
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 24
    first, second = (model(given, model.blank_memory(1), starts)[0] for given in (tokens, changed))
    assert (first[20:] - second[20:]).abs().max() > 1e-6


def test_the_last_outputs_of_the_block_before_are_what_multi_filter_sees() -> None:
    config = network(contexts="multi_filter")
    model = built(config)
    mixer = model.layers[1].mixer
    assert isinstance(mixer, BlockStateAttention)
    x, memory, starts = draw(12, 2, 10), model.blank_memory(2)[1], starts_of([0, 0, 1], [1, 0, 0])
    memory["contexts"] = draw(2, 5, 10, seed=4)
    seen, kept = mixer.contexts(x, memory, starts)
    y, _ = mixer.filters(x.unflatten(0, (3, 4)).permute(2, 0, 1, 3), memory["filters"], starts, last=False)
    ends = y[..., -1] + mixer.direct * x.unflatten(0, (3, 4))[:, -1].transpose(0, 1).unsqueeze(2)
    assert torch.equal(seen[0, 0], memory["contexts"][0])
    assert (seen[0, 1] - ends[0, 0]).abs().max() < 1e-12
    assert torch.equal(seen[0, 2], mixer.initial_contexts)
    assert torch.equal(seen[1, 0], mixer.initial_contexts)
    assert (seen[1, 1:] - ends[1, :2]).abs().max() < 1e-12
    assert (kept["contexts"] - ends[:, -1]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [{}, UNSTRUCTURED], ids=["s4d", "unstructured"])
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_what_is_counted_is_what_is_there_and_all_of_it_learns(contexts: str, kind: dict[str, Any]) -> None:
    config = network(contexts=contexts, **kind)
    model = BlockRecurrentModel(config, seed=0)
    counted = sum(matrix.size for matrix in layer_parameters(config, 1))
    assert counted == sum(parameter.numel() for parameter in model.layers[1].parameters())
    tokens, starts = tokens_of(config, 2, 3), starts_of([1, 0, 0], [0, 0, 1])
    with FlopCounterMode(display=False) as forward:
        model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(config, executed=True) * tokens.numel(), rel=1e-12)
    assert forward_flops(config) < forward_flops(config, executed=True)
    model = built(config)
    for name, gradient in gradients(model, model(tokens, model.blank_memory(2), starts)[0].square().sum()).items():
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_bf16_keeps_the_states_in_float32(contexts: str) -> None:
    config = network(contexts=contexts)
    model = BlockRecurrentModel(config, seed=2)
    tokens, starts = tokens_of(config, 2, 6), torch.zeros(2, 6, dtype=torch.bool)
    exact = model(tokens, model.blank_memory(2), starts)[0]
    rounded = model.bfloat16()
    logits, memory = rounded(tokens, rounded.blank_memory(2), starts)
    assert memory[1]["filters"].dtype == torch.float32
    kept = logits[..., :24].float() - exact[..., :24]
    assert kept.abs().max() < 0.06 * exact[..., :24].abs().max()


@pytest.mark.parametrize(
    ("bst", "other", "said"),
    [
        (
            {"filter": "unstructured"},
            {},
            "nothing that could be carried to the next segment; nearest: model.mixers.bst.carry=false",
        ),
        ({"filter_states": 7}, {}, "nearest: model.mixers.bst.filter_states=8"),
    ],
)
def test_what_it_cannot_do_is_refused(bst: dict[str, Any], other: dict[str, Any], said: str) -> None:
    given = {
        "data": {"dataset": "books", "segment": 64, "streams": 4},
        "run": {"directory": "run", "steps": 5000},
        "model": network(**bst).model_dump() | {"window": 16},
    }
    with pytest.raises(ConfigError) as error:
        check(Config.model_validate(given | other))
    assert said in str(error.value)
