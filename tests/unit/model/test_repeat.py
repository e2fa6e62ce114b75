"""A stack of layers that runs several times: the same as a longer one with equal weights, and MoEUT's sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from brt_dist.config.loading import load as load_config
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.generation.decoder import Decoder
from brt_dist.model.dropout import Dropout
from brt_dist.model.model import BlockRecurrentModel, full_logits
from brt_dist.model.parameters import logical_parameters
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.unit.model.networks import built, gradients, some_memory, starts_of, tokens_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "moeut"
# width, layers, heads, experts of the FFN, experts of a head, size of a head, distinct layers; the authors' profiles.py
PROFILES = {
    "44M": (412, 16, 4, 155, 8, 82, 2),
    "126M": (768, 18, 4, 254, 10, 96, 2),
    "244M": (1024, 18, 4, 387, 10, 128, 2),
    "318M": (1024, 24, 4, 338, 10, 128, 3),
    "727M": (1024, 36, 5, 467, 13, 128, 4),
    "1B": (1536, 36, 6, 565, 12, 128, 4),
}


def network(layers: int = 2, repeat: int = 3, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": layers, "repeat": repeat, "width": 10, "heads": 2, "head_dim": 6, "vocab_size": 24, "window": 4,
            "dropout": 0.0, "mixers": {"switchhead": {"experts": 4, "entropy": 0.3}},
            "ffns": {"sigma_moe": {"experts": 7, "chosen": 3, "expert_width": 4, "entropy": 0.5}}, **changes,
        }
    )  # fmt: skip


def test_repeats_are_more_layers_with_the_same_weights() -> None:
    config = network()
    model, long = built(config), built(network(layers=6, repeat=1))
    for index, layer in enumerate(long.layers):
        layer.load_state_dict(model.layers[index % 2].state_dict())
    with torch.no_grad():
        long.embedding.weight.copy_(model.embedding.weight)
        long.final_norm.weight.copy_(model.final_norm.weight)
    tokens, starts, memory = tokens_of(config, 2, 3), starts_of([0, 0, 1], [1, 0, 0]), some_memory(long, 2)
    assert [set(layer) for layer in some_memory(model, 2)] == [set(layer) for layer in memory]
    ours, after = model(tokens, memory, starts)
    theirs, expected = long(tokens, memory, starts)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(after, expected, strict=True) for name in b)
    one, other = (gradients(of, logits.square().sum()) for of, logits in ((model, ours), (long, theirs)))
    assert set(one) == {name for name in other if not name.startswith(("layers.2", "layers.3", "layers.4", "layers.5"))}
    for name, gradient in one.items():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            summed = sum(other[f"layers.{int(index) + 2 * run}.{rest}"] for run in range(3))
            assert (gradient - summed).abs().max() < 1e-9 * (1 + summed.abs().max())


@pytest.mark.parametrize("recompute", ["layer", "attention"])
def test_the_regulariser_sees_all_repeats_and_recompute_changes_nothing(recompute: str) -> None:
    """Its gradient is that of the entropy of the mean over tokens and repeats, computed here from the logits."""
    config = network(mixers={"window": {}}, ffns=network().model_dump()["ffns"])
    model = built(config)
    tokens, starts = tokens_of(config, 2, 3), starts_of([1, 0, 0], [1, 0, 0])
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    hooks = [
        layer.ffn.norm.register_forward_hook(
            lambda norm, _, out, index=index: seen[index].append(out @ model.layers[index].ffn.router.T)
        )
        for index, layer in enumerate(list(model.layers)[:2])
    ]
    logits, _ = model(tokens, model.blank_memory(2), starts)
    for hook in hooks:
        hook.remove()
    expected = torch.zeros((), dtype=torch.float64)
    for found in seen.values():
        assert len(found) == 3
        shares = torch.stack(found).softmax(-1).mean((0, 1))
        expected = expected + 0.5 * (shares * shares.log()).sum(-1).mean()
    routers = [layer.ffn.router for layer in list(model.layers)[:2]]
    wanted = torch.autograd.grad(expected, routers)

    again = BlockRecurrentModel(config, recompute=recompute).double()  # type: ignore[arg-type]
    again.load_state_dict(model.state_dict())
    for other in (model, again):
        logits, _ = other(tokens, other.blank_memory(2), starts, Dropout(0.0, 0, 0, (0, 1)))
        nothing = logits[..., :1].sum() * 0.0
        found = torch.autograd.grad(nothing, [layer.ffn.router for layer in list(other.layers)[:2]])
        for one, two in zip(found, wanted, strict=True):
            assert (one - two).abs().max() < 1e-10 * (1 + two.abs().max())


def test_each_run_has_its_own_masks() -> None:
    x, dropout = torch.ones(4, 2, 30), Dropout(0.5, 0, 0, (0, 1))
    runs = [dropout.in_repeat(repeat, 2).activations(x, 1, "site") for repeat in (0, 1)]
    assert torch.equal(runs[0], dropout.activations(x, 1, "site"))
    assert not torch.equal(runs[0], runs[1])


def test_operations_count_every_run_and_parameters_one() -> None:
    once, thrice = network(repeat=1), network(repeat=3)
    head = 2 * once.width * 24
    assert forward_flops(thrice) - head == 3 * (forward_flops(once) - head)
    model = BlockRecurrentModel(thrice, seed=0)
    names = [parameter.name for parameter in logical_parameters(model)]
    assert len(names) == len(set(names)) and {name.split(".")[1] for name in names if "layers" in name} == {"0", "1"}
    assert len(model.blank_memory(1)) == thrice.depth == 6


def test_text_is_read_token_by_token_with_the_same_logits() -> None:
    config = network()
    model = built(config)
    tokens, starts = tokens_of(config, 1, 3), starts_of([1, 0, 0])
    with torch.no_grad():
        whole = full_logits(model(tokens, model.blank_memory(1), starts)[0], 24)[0]
        decoder = Decoder(model, 1)
        found = torch.cat([decoder.feed({0: [token]}) for token in tokens[0].tolist()])
    assert (found - whole).abs().max() < 1e-9


@pytest.mark.parametrize("size", PROFILES)
def test_the_authors_configs_have_their_parameters(size: str) -> None:
    width, depth, heads, experts, of_head, head_dim, distinct = PROFILES[size]
    settings = ["data.dataset=books", "run.directory=run", "run.steps=5000", "model.vocab_size=8000"]
    config = load_config(EXAMPLES / f"{size}.yaml", settings).config.model
    assert (config.layers, config.depth) == (distinct, depth)
    with torch.device("meta"):
        model = BlockRecurrentModel(config)
    found = sum(p.size for p in logical_parameters(model)) - 8000 * width - width
    ffn = experts * (2 * 128 * width + width)
    attention = 2 * heads * head_dim * width * (1 + of_head) + 2 * heads * of_head * width
    assert found == distinct * (ffn + attention + 4 * width)
    assert found == sum(matrix.size for layer in range(distinct) for matrix in layer_parameters(config, layer))


def test_every_profile_has_a_file() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(PROFILES)


@pytest.mark.parametrize(
    ("model", "parallel", "said"),
    [
        ({}, {"pipeline": 2}, "would pass through all stages again for each repeat; nearest: parallel.pipeline=1"),
        (
            {"feedback": True, "mixers": {"recurrent": {"layers": None}}},
            {},
            "each run of the layer that feeds back has a state of its own; nearest: model.feedback=false",
        ),
    ],
)
def test_what_cannot_repeat_is_refused(model: dict[str, Any], parallel: dict[str, Any], said: str) -> None:
    given = {
        "data": {"dataset": "books", "segment": 64, "streams": 4},
        "run": {"directory": "run", "steps": 5000},
        "model": network().model_dump() | {"window": 16} | model,
        "parallel": parallel,
    }
    with pytest.raises(ConfigError) as error:
        check(Config.model_validate(given))
    assert said in str(error.value)
