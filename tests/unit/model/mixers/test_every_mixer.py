"""What every kind of mixer must do, on one process."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.kinds import MIXERS
from brt_dist.model.delta_rule import solve_flops
from brt_dist.model.model import full_logits
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, some_memory, tokens_of

SETTINGS: dict[str, dict[str, Any]] = {
    "window": {},
    "recurrent": {"states": 5, "layers": None},
    "linear": {},
    "switchhead": {"experts": 4},
    "bst": {"contexts": "multi_filter", "context_filters": 5, "filter_states": 6},
    "delta": {"chunk": 2, "gate": True, "value_dim": 5, "negative_eigenvalues": True},
    "gated_delta": {"chunk": 4, "convolution": 3},
    "memsizer": {"rows": 5},
    "nprf_rpe": {"features": 5, "reach": 3},
    "fourier_memory": {"blocks": 2, "keep": 0.6},
    "lstm": {},
}
BLOCKS, WINDOW = 6, 4


def hybrid(kind: str, **changes: Any) -> ModelConfig:
    """Two layers of a kind below one of linear attention."""
    return ModelConfig.model_validate(
        {
            "layers": 3, "width": 12, "heads": 2, "head_dim": 6, "vocab_size": 24, "window": WINDOW, "dropout": 0.0,
            "mixers": {"first": {"kind": kind, **SETTINGS[kind]}, "last": {"kind": "linear", "layers": [-1]}},
            "ffns": {"relu": {"width": 16}}, **changes,
        }
    )  # fmt: skip


def test_every_kind_is_here() -> None:
    assert set(SETTINGS) == {kind for kind in MIXERS if MIXERS[kind].is_causal}


@pytest.mark.parametrize("kind", SETTINGS)
def test_segments_causality_and_the_start_of_a_document(kind: str) -> None:
    given = hybrid(kind)
    model, tokens, memory = built(given), tokens_of(given, 2, BLOCKS), None
    memory = some_memory(model, 2)
    memory = [{name: value.abs() for name, value in layer.items()} for layer in memory]  # sums of positive terms
    starts = torch.zeros(2, BLOCKS, dtype=torch.bool)
    whole, after = model(tokens, memory, starts)
    half = BLOCKS // 2
    first, between = model(tokens[:, : half * WINDOW], memory, starts[:, :half])
    second, end = model(tokens[:, half * WINDOW :], between, starts[:, half:])
    assert (torch.cat([first, second]) - whole).abs().max() < 1e-10
    for one, other in zip(end, after, strict=True):
        assert all((one[name] - other[name]).abs().max() < 1e-9 for name in other)
    cleared, _ = model(tokens, model.blank_memory(2), starts)
    assert not torch.equal(cleared[-1], whole[-1])

    changed = tokens.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 24
    assert (model(changed, memory, starts)[0][:13] - whole[:13]).abs().max() < 1e-12
    assert not torch.equal(model(changed, memory, starts)[0][13:], whole[13:])

    starts[:, half] = True
    poisoned = [{name: torch.full_like(value, math.nan) for name, value in layer.items()} for layer in memory]
    begun, _ = model(tokens, memory, starts)
    alone, _ = model(tokens[:, half * WINDOW :], poisoned, starts[:, half:])
    # not bit for bit: experts group tokens, and products of other sizes may round differently
    assert (model(tokens, poisoned, starts)[0] - begun)[half * WINDOW :].abs().max() < 1e-12
    assert (alone - begun[half * WINDOW :]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_calls_are_one_in_gradients_too(kind: str) -> None:
    """A layer's memory keeps its gradient."""
    given = hybrid(kind)
    model = built(given)
    layer, memory = model.layers[0], some_memory(model, 2)[0]
    memory = {name: value.abs().requires_grad_() for name, value in memory.items()}
    x = torch.randn(BLOCKS * WINDOW, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    starts, half = torch.zeros(2, BLOCKS, dtype=torch.bool), BLOCKS // 2
    inputs = [x, *memory.values(), *layer.parameters()]
    whole, _ = layer(x, memory, starts)
    first, between = layer(x[: half * WINDOW], memory, starts[:, :half])
    second, _ = layer(x[half * WINDOW :], between, starts[:, half:])
    weights = torch.randn(whole.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one, other = (
        torch.autograd.grad((found * weights).sum(), inputs, allow_unused=True)
        for found in (whole, torch.cat([first, second]))
    )
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= 1e-9 * (1 + a.abs().max())


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_counted_is_what_is_there(kind: str) -> None:
    given = hybrid(kind)
    model = built(given)
    counted = sum(matrix.size for matrix in layer_parameters(given, 1))
    assert counted == sum(parameter.numel() for parameter in model.layers[1].parameters())
    tokens, starts = tokens_of(given, 2, BLOCKS), torch.zeros(2, BLOCKS, dtype=torch.bool)

    def of_system(matrix: tuple[int, ...], right: tuple[int, ...], *_: Any, **__: Any) -> int:
        return math.prod(right[:-2]) * solve_flops(right[-2], right[-1])  # torch's counter leaves it out

    custom = {torch.ops.aten.linalg_solve_triangular: of_system}
    with FlopCounterMode(display=False, custom_mapping=custom) as forward:
        model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(given, executed=True) * tokens.numel(), rel=1e-12)
    assert forward_flops(given) <= forward_flops(given, executed=True)
    for field in given.mixer_of(1).memory(given):
        assert model.blank_memory(2)[1][field.name].shape == (2, *field.shape)


@pytest.mark.parametrize("kind", SETTINGS)
def test_sums_and_states_stay_float32_under_bf16(kind: str) -> None:
    given = hybrid(kind)
    model, starts = built(given, dtype=torch.float32), torch.zeros(2, BLOCKS, dtype=torch.bool)
    with torch.no_grad():  # as small as first values are: what is compared is rounding
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("embedding"):
                parameter.mul_(0.3)
    tokens = tokens_of(given, 2, BLOCKS)
    exact = full_logits(model(tokens, model.blank_memory(2), starts)[0], 24)
    rounded = model.bfloat16()
    logits, memory = rounded(tokens, rounded.blank_memory(2), starts)
    for field in given.mixer_of(0).memory(given):
        expected = torch.float32 if field.dtype == "float32" else torch.bfloat16
        assert memory[0][field.name].dtype == rounded.blank_memory(2)[0][field.name].dtype == expected
    assert (full_logits(logits, 24) - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_hybrid_is_one_line() -> None:
    line = "model.mixers={window: {}, delta: {layers: [0, 2, 4]}, recurrent: {layers: [-1], states: 64}}"
    given = load([], ["data.dataset=books", "run.directory=run", "run.steps=9", "model.layers=6", line]).config
    assert [given.model.mixer_of(layer).kind for layer in range(6)] == [
        "delta", "window", "delta", "window", "delta", "recurrent",
    ]  # fmt: skip


def run_config(kind: str, model: dict[str, Any], **parallel: Any) -> Config:
    section = {**hybrid(kind).model_dump(), "vocab_size": 11, **model}
    return Config.model_validate(
        {
            "data": {"dataset": "books", "segment": 64, "streams": 4},
            "run": {"directory": "run", "steps": 5000},
            "model": section,
            "parallel": parallel,
        }
    )


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind not in ("window", "recurrent")])
def test_feedback_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"no state of another layer; nearest: model.feedback=false"):
        check(run_config(kind, {"feedback": True}))


@pytest.mark.parametrize(
    ("kind", "settings", "model", "parallel", "said"),
    [
        ("linear", {}, {"heads": 3}, {"tensor": 2}, "model.heads=3 cannot be split over parallel.tensor=2"),
        ("delta", {}, {"heads": 3}, {"tensor": 2}, "model.heads=3 cannot be split over parallel.tensor=2"),
        ("memsizer", {}, {"width": 13}, {"tensor": 2}, "model.width=13 cannot be split over parallel.tensor=2"),
        ("nprf_rpe", {"reach": 9}, {}, {}, r"lags cannot be told apart; nearest: .*reach=4"),
        ("delta", {"convolution": 6}, {}, {}, r"the tokens before a block must lie in one block; nearest: .*=5"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(
    kind: str, settings: dict[str, Any], model: dict[str, Any], parallel: dict[str, Any], said: str
) -> None:
    mixers = {"first": {"kind": kind, **SETTINGS[kind], **settings}}
    with pytest.raises(ConfigError, match=said):
        check(run_config(kind, {"mixers": mixers, **model}, **parallel))
