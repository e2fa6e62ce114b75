"""Mixers and FFNs in the config: sections by name, older keys, and which layer has which."""

import pytest

from brt_dist.config.changes import changes
from brt_dist.config.halves import assigned
from brt_dist.config.loading import dump, flatten, load
from brt_dist.config.rules import check
from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.kinds import FFNS, MIXERS

BASE = "data: {dataset: books, segment: 512, streams: 4}\nrun: {directory: run, steps: 2000}\n"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        check(load(BASE + text, list(overrides)).config)
    return str(error.value)


def test_older_keys_mean_what_they_did() -> None:
    older = load(
        BASE, ["model={layers: 4, recurrent_layers: [0, -1], states: 8, gate: lstm, mlp_width: 64, positions: rotary}"]
    )
    newer = load(
        BASE
        + """
model:
  layers: 4
  mixers:
    window: {positions: rotary}
    recurrent: {layers: [0, -1], states: 8, gate: lstm, mlp_width: 64, positions: rotary}
  ffns: {relu: {width: 64}}
"""
    )
    assert older.config == newer.config
    assert older.provenance["model.mixers.recurrent.states"] == "command line"
    assert (
        ModelConfig.model_validate({"layers": 4, "states": 8})
        == load(BASE, ["model={layers: 4, states: 8}"]).config.model
    )
    assert load(dump(older.config)).config == older.config


def test_each_layer_has_the_mixer_that_names_it() -> None:
    model = load(
        BASE + "model: {layers: 5, mixers: {tokens: {kind: window}, wide: {kind: recurrent, layers: [-1], states: 9}, "
        "recurrent: {layers: [1], states: 3}}}"
    ).config.model
    assert [model.mixer_of(layer).kind for layer in range(5)] == [
        "window",
        "recurrent",
        "window",
        "window",
        "recurrent",
    ]
    assert assigned(model.mixers, 5) == ["tokens", "recurrent", "tokens", "tokens", "wide"]
    assert model.feeding_layers() == (1, 4)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "model: {mixers: {window: {states: 4}}}",
            ("<text>:3: unknown key model.mixers.window.states (only recurrent has it)",),
        ),
        (
            "model: {mixers: {recurrent: {statez: 4}}}",
            ("unknown key model.mixers.recurrent.statez; nearest: model.mixers.recurrent.states",),
        ),
        (
            "model: {mixers: {a: {kind: windw}}}",
            ("model.mixers.a.kind must be one of", "not 'windw'; nearest: window"),
        ),
        ("model: {mixers: [window]}", ("model.mixers must map names to sections", "window, recurrent")),
        (
            "model: {states: 4, mixers: {window: {}}}",
            (
                "model.states is the old name of model.mixers.recurrent.states",
                "set model.mixers.recurrent.states instead",
            ),
        ),
        ("model: {mixers: {window: {}, b: {kind: window}}}", ("window and b both leave `layers` unset",)),
        ("model: {layers: 3, mixers: {window: {layers: [0]}}}", ("no entry covers layers 1, 2",)),
        # a setting of one mixer alone does not make every layer recurrent
        ("model: {layers: 4, mixers: {recurrent: {cell: dual}}}", ("no entry covers layers 0, 2, 3",)),
        (
            "model: {layers: 3, mixers: {window: {}, a: {kind: window, layers: [1]}, b: {kind: window, layers: [-2]}}}",
            (
                "model.mixers.b.layers and model.mixers.a.layers both contain layer 1",
                "nearest: model.mixers.b.layers=[]",
            ),
        ),
        (
            "model: {layers: 3, ffns: {relu: {layers: [5]}}}",
            ("model.ffns.relu.layers contains 5, but with model.layers=3", "nearest: 2"),
        ),
        ("model: {mixers: {recurrent: {states: many}}}", ("model.mixers.recurrent.states must be a whole number",)),
    ],
)
def test_mistakes_are_one_message(text: str, parts: tuple[str, ...]) -> None:
    message = refusal(text)
    for part in parts:
        assert part in message


def test_what_a_kind_calls_changeable_may_change_when_allowed() -> None:
    before, now = (flatten(load(BASE, [f"model.clear_state={value}"]).config) for value in ("false", "true"))
    key = "model.mixers.recurrent.clear_state"
    (found,) = changes(before, now)
    assert (found.key, found.reason) == (key, None)
    assert changes(before, now, [key]) == changes(before, now, ["model.clear_state"]) == []
    (never,) = changes(before, flatten(load(BASE, ["model.states=7"]).config), ["model.mixers.recurrent.states"])
    assert never.reason is not None


def test_every_kind_describes_itself() -> None:
    model = ModelConfig(vocab_size=100)
    for registry in (MIXERS, FFNS):
        for name, kind in registry.items():
            half = kind()
            assert half.kind == name
            assert sum(matrix.size for matrix in half.parameters(model)) > 0
            assert half.flops(model, executed=False) <= half.flops(model, executed=True)
            assert all(field.description for field in kind.model_fields.values())
    assert all(MIXERS[name].is_causal != bool(MIXERS[name].reads_ahead) for name in MIXERS)
