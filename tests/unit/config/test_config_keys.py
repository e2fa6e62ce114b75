"""`brt config keys`: every key with its meaning, default and choices."""

import json

import pytest

from brt_dist.config.data_rules import DatasetFacts
from brt_dist.config.describe import described
from brt_dist.config.keys import leaf_keys
from brt_dist.config.loading import flatten, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.config.section import Section
from brt_dist.errors import ConfigError
from brt_dist.kinds import FFNS, MIXERS, OPTIMIZERS
from launch.cli import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["config", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_every_key_has_a_meaning_and_the_default_that_counts() -> None:
    found = {key.name: key for key in described(Config)}
    assert list(found) == list(leaf_keys(Config))
    assert not [name for name, key in found.items() if len(key.meaning) < 5]
    actual = flatten(load(["data: {dataset: d}\nrun: {directory: r, steps: 1}\n"]).config)
    for name, value in actual.items():
        if (
            name in found
            and not found[name].required
            and not name.startswith(("data.dataset", "model.mixers", "model.ffns"))
        ):
            assert found[name].default == value, name
    assert found["run.steps"].required and not found["run.name"].required
    assert set(found["optimizer.name"].choices) == set(OPTIMIZERS)
    assert set(found["model.mixers.recurrent.kind"].choices) == set(MIXERS)
    assert found["run.device"].choices == ("auto", "cpu", "cuda")
    assert found["data.verify"].choices == ("true", "false")


@pytest.mark.parametrize(("mapping", "kinds"), [("model.mixers", MIXERS), ("model.ffns", FFNS)])
def test_a_kind_is_described_by_its_own_fields(mapping: str, kinds: dict[str, type[Section]]) -> None:
    """Several kinds have a `gate`: that of the recurrent one is a word, that of delta a switch."""
    found = {key.name: key for key in described(Config)}
    for kind, section in kinds.items():
        for name, field in section.model_fields.items():
            if (key := found.get(f"{mapping}.{kind}.{name}")) is not None and name != "kind":
                assert (key.meaning, key.required) == (field.description, field.is_required()), key.name
    assert found["model.mixers.delta.gate"].choices == ("true", "false")
    assert found["model.mixers.recurrent.gate"].choices == ("fixed", "lstm")


def test_keys_by_their_beginning_or_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(capsys, "keys", "optimizer")
    assert code == 0 and all(line.split()[0].startswith("optimizer.") for line in out.splitlines()[1:])
    code, out, _ = printed(capsys, "keys", "run.checkpoint_every", "--json")
    assert json.loads(out)["keys"]["run.checkpoint_every"]["default"] == 1000
    assert "run.checkpoint_every" in printed(capsys, "keys", "checkpoint")[1]
    code, _, err = printed(capsys, "keys", "lr")
    assert code == 10 and "optimizer.learning_rate" in err
    assert printed(capsys, "show") == printed(capsys, "keys")


@pytest.mark.parametrize(
    ("given", "documents", "nearest"),
    [
        (
            ["data.streams=512", "parallel.data=8", "parallel.micro_batch=64"],
            190,
            "data.streams=184, parallel.micro_batch=23",
        ),
        (["data.streams=500", "parallel.micro_batch=10"], 195, "data.streams=190"),
        (["data.streams=8", "parallel.data=8"], 3, "data.streams=3, parallel.micro_batch=1, parallel.data=3"),
    ],
)
def test_the_nearest_number_of_streams_is_near(given: list[str], documents: int, nearest: str) -> None:
    base = ["data: {dataset: d}\nrun: {directory: r, steps: 2000}\n"]
    facts = DatasetFacts(documents, 256, "x", 100)
    with pytest.raises(ConfigError, match="every stream needs its own") as error:
        check(load(base, given).config, facts)
    assert str(error.value).splitlines()[0].endswith(f"nearest: {nearest}")
    check(load(base, [*given, *nearest.split(", ")]).config, facts)


def test_wrong_types_and_broken_rules_are_told_together() -> None:
    base = "data: {dataset: d, segment: 1000}\nrun: {directory: r, steps: 2000}\n"
    with pytest.raises(ConfigError) as error:
        load([base], ["optimizer.learning_rate=fast", "model.layrs=3", "model.width=wide"])
    message = str(error.value)
    for part in ("4 problems", "optimizer.learning_rate must be", "nearest: model.layers", "model.width must be",
                 "data.segment=1000 must be a multiple"):  # fmt: skip
        assert part in message
    with pytest.raises(ConfigError, match=r"model\.window must be") as error:
        load([base], ["model.window=x"])
    assert "multiple" not in str(error.value), "what a rule would say of a value that is not known is not told"
