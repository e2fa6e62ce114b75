"""Any text of a config is read as its writer meant it, or refused in one message, in bounded time."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.config.aliases import ALIASES
from brt_dist.config.keys import leaf_keys
from brt_dist.config.loading import dump, load
from brt_dist.config.schema import Config
from brt_dist.config.yaml_tree import Leaf, parse, write
from brt_dist.errors import ConfigError
from launch.commands.arguments import split

BASE = "data: {dataset: books}\nrun: {directory: runs/a, steps: 10}\n"


def refusal(text: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load([text], overrides)
    return str(error.value)


@pytest.mark.parametrize("bad", ["\0", "\a", "\x1b", "\f", "\x7f", "\x80", "\x9f", "\ud800"])
def test_characters_that_are_no_text(bad: str) -> None:
    assert "is not allowed in YAML" in refusal(f"{BASE}optimizer: {{name: a{bad}}}\n")
    quoted = refusal(BASE, f'run.name="a\\x{ord(bad):02x}b"') if ord(bad) < 256 else refusal(BASE, f"run.name=a{bad}")
    assert "run.name" in quoted or "not allowed" in quoted


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16", "latin-1"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes((BASE + "# \u00e9\n").encode(encoding))
    message = refusal(path)
    assert str(path) in message and ("not UTF-8" in message or "is it a text file in UTF-8" in message)


@pytest.mark.parametrize(
    "value",
    ["!!int abc", "!!float x", "!!bool x", "!!timestamp x", "!!int 0x", "!!int 0b", "!!int " + "9" * 5000, "9" * 5000,
     "0x" + "f" * 5000, "!!binary x", "!!set x", "!!omap x", "!!python/name:os.system", "!foo 1", "*nowhere",
     "&a [*a]"],
)  # fmt: skip
def test_values_that_are_none(value: str) -> None:
    message = refusal(f"{BASE}optimizer: {{learning_rate: {value}}}\n")
    assert "<text>:3" in message or "optimizer.learning_rate" in message


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("run.steps=0100", "run.steps"),
        ("run.seed=1:30", "run.seed"),
        ("parallel.sequence_parallel=on", "parallel.sequence_parallel"),
        ("parallel.sequence_parallel=yes", "parallel.sequence_parallel"),
        ("data.mixture=[{dataset: a, weight: .inf}]", "finite"),
        ("data.mixture=[{dataset: a, weight: .nan}]", "finite"),
        ("data.dataset=\"a\\0b\"", "data.dataset"),
        ("run.directory=\"a\\0b\"", "run.directory"),
        ("optimizer.name=[]", "optimizer.name must be one of"),
        ("optimizer.name={a: 1}", "optimizer.name must be one of"),
    ],
)  # fmt: skip
def test_what_yaml_1_1_would_take_for_something_else(setting: str, said: str) -> None:
    assert said in refusal(BASE, setting)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1_000", 1000), ("0x1F", 31), ("1.", 1.0), (".5", 0.5)])
def test_numbers(text: str, value: float) -> None:
    tree = parse(f"a: {text}", "t", [])
    assert isinstance(tree["a"], Leaf) and tree["a"].value == value


@pytest.mark.parametrize(
    "name", ["1e5", "0100", "1:30", "on", "yes", "null", "~", "2026-01-01", "0x1", ".inf", "=", "<<"]
)
def test_a_name_is_written_so_that_it_is_read_as_one(name: str) -> None:
    config = load([BASE]).config
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    assert load([dump(named)]).config == named
    assert yaml.safe_load(write({"a": name})) == {"a": name}  # by others' YAML 1.1 too


# no control characters and line separators, which are refused in a config
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], include_characters="\n\t"))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=6,
)


def value_of(node: Any) -> Any:
    return {key: value_of(inner) for key, inner in node.items()} if isinstance(node, dict) else node.value


@given(plain)
def test_what_is_written_is_read(value: Any) -> None:
    problems: list[str] = []
    written = write({"a": [value]})
    assert value_of(parse(written, "t", problems)) == {"a": [value]} and not problems


@given(st.text())
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    for source, overrides in ((text, []), (BASE + text, []), (BASE, [text]), (BASE, [f"run.name={text}"])):
        try:
            load([source], overrides)
        except ConfigError as error:
            assert str(error)


@given(st.binary(max_size=200))
def test_any_bytes_in_a_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load([path])


@pytest.mark.parametrize(
    "text",
    [
        "run: {name: " + "a" * (900 << 10) + "}\n",
        "a" * (900 << 10) + ": 1\n",
        "optimizer: {name: " + "a" * (900 << 10) + "}\n",
        "model: {mixers: {" + "a" * (900 << 10) + ": {}}}\n",
        "a: " + "[" * 3000 + "]" * 3000 + "\n",
        "#" * (2 << 20),
    ],
)
def test_large_texts_are_answered(text: str) -> None:
    """Within seconds; before the work was bounded, comparing such a name with ours took minutes."""
    try:
        load([BASE + text])
    except ConfigError as error:
        assert len(str(error)) < 4 << 20


def test_a_flat_key_is_told_how_it_is_written() -> None:
    message = refusal("data: {dataset: books}\nrun.steps: 3\nrun: {directory: a}\n")
    assert "<text>:2: run.steps is written as a section in a file: `run:`, and below it, indented, `steps:`" in message


@pytest.mark.parametrize("alias", ALIASES)
def test_names_that_others_use_are_answered_by_meaning(alias: str) -> None:
    keys = set(leaf_keys(Config))
    assert ALIASES[alias] in keys and f"it is called {ALIASES[alias]} here" in refusal(BASE, f"model.{alias.upper()}=1")


def test_an_override_too_long_for_a_path_is_an_override() -> None:
    long = "run.name=" + "a" * 300
    assert split((long, "x" * 300 + "/a=1")) == ([], [long, "x" * 300 + "/a=1"])
