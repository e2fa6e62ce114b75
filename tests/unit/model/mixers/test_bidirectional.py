"""Attention in both directions against a float64 loop; what it sees and what it must not; its counts; its recipe."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.kinds import MIXERS
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, tokens_of

WINDOW, HEADS, SIZE, WIDTH = 4, 2, 6, 10


def small() -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": 2, "width": WIDTH, "heads": HEADS, "head_dim": SIZE, "vocab_size": 24, "window": WINDOW,
            "dropout": 0.0, "mixers": {"bidirectional": {}}, "ffns": {"relu": {"width": 14}}, "objective": "mlm",
        }
    )  # fmt: skip


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """Rotary positions by complex numbers."""
    half = len(x) // 2
    rates = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    whole = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(rates), position * rates)
    return torch.cat([whole.real, whole.imag])


def test_a_layer_is_a_loop_over_queries_and_keys() -> None:
    mixer = built(small()).requires_grad_(False).layers[0].mixer
    x = torch.randn(2 * WINDOW, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, memory = mixer(x, {}, torch.zeros(3, 2, dtype=torch.bool), None)
    assert memory == {}
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * mixer.norm.weight
    projected = (normed @ mixer.projections.weight.T).unflatten(-1, (HEADS, 3, SIZE))
    for stream in range(3):
        for token in range(2 * WINDOW):
            block, read = token // WINDOW * WINDOW, []
            for head in range(HEADS):
                query = turned(projected[token, stream, head, 0], token - block)
                seen = projected[block : block + WINDOW, stream, head]
                logits = [float(query @ turned(key, at)) / math.sqrt(SIZE) for at, key in enumerate(seen[:, 1])]
                weights = [math.exp(logit) for logit in logits]
                read.append(sum(weight / sum(weights) * seen[at, 2] for at, weight in enumerate(weights)))
            assert (mixer.output.weight @ torch.cat(read) - found[token, stream]).abs().max() < 1e-12


def test_tokens_see_their_block_in_both_directions_and_no_other() -> None:
    given = small()
    model, tokens, starts = built(given), tokens_of(given, 1, 3), torch.zeros(1, 3, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 24
    one, other = (model(which, model.blank_memory(1), starts)[0] for which in (tokens, changed))
    moved = (one - other).abs().amax((1, 2))
    assert moved[4:8].min() > 1e-6
    assert torch.cat([moved[:4], moved[8:]]).max() == 0


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if not MIXERS[kind].is_causal])
def test_what_is_counted_is_what_is_there(kind: str) -> None:
    """Of any encoder."""
    given = ModelConfig.model_validate(small().model_dump() | {"mixers": {kind: {}}})
    model, tokens, starts = built(given), tokens_of(given, 2, 3), torch.zeros(2, 3, dtype=torch.bool)
    counted = sum(matrix.size for matrix in layer_parameters(given, 0))
    assert counted == sum(parameter.numel() for parameter in model.layers[0].parameters())
    with FlopCounterMode(display=False) as forward:
        model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(given) * tokens.numel(), rel=1e-12)
    assert forward_flops(given) == forward_flops(given, executed=True)


@pytest.mark.parametrize(
    ("model", "parallel", "said"),
    [
        (
            {"objective": "causal"},
            {},
            "bidirectional is not causal, because its tokens attend to later tokens of their",
        ),
        ({"head_dim": 7}, {}, "must be even; nearest: model.head_dim=8"),
        ({"heads": 3}, {"tensor": 2}, "model.heads=3 cannot be split over parallel.tensor=2"),
        ({"feedback": True}, {}, "no state of another layer; nearest: model.feedback=false"),
    ],
)
def test_what_it_cannot_do_is_refused(model: dict[str, Any], parallel: dict[str, Any], said: str) -> None:
    given = {
        "data": {"dataset": "books", "segment": 64, "streams": 4},
        "run": {"directory": "run", "steps": 5000},
        "model": small().model_dump() | {"vocab_size": 11} | model,
        "parallel": parallel,
    }
    with pytest.raises(ConfigError, match=said):
        check(Config.model_validate(given))


def test_the_recipe_is_that_of_bert_base() -> None:
    given = load([Path(__file__).parents[4] / "examples" / "bert_mlm.yaml"], ["data.dataset=d"]).config
    check(given)
    model = given.model
    assert {model.mixer_of(layer).kind for layer in range(model.layers)} == {"bidirectional"}
    # BERT-base: 12 layers of 4 D^2 of attention and 8 D^2 of the FFN; one norm's weights of each half, no biases
    assert sum(matrix.size for matrix in layer_parameters(model, 0)) == 12 * 768**2 + 2 * 768
    assert model.window == given.data.segment
