"""Load YAML files and `key.sub=value` overrides into a validated :class:`Config`, with the origin of every value.

One pass finds the problems of all sources, and one message reports them, each with its place (`file:line`).
Validation is strict: `layers: 2.0` or `device: true` is an error, not a guess.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from brt_dist.config.keys import dotted, field_of, leaf_keys, leaves, nearest_key, subsection
from brt_dist.config.older import drop_optimizer_keys, drop_zero_keys, move_model_keys
from brt_dist.config.rules import broken_rules
from brt_dist.config.schema import Config
from brt_dist.config.section import Choice, choice_of
from brt_dist.config.wording import humanize
from brt_dist.config.yaml_tree import LONGEST, Leaf, Node, Tree, first_place, parse, write
from brt_dist.errors import CheckpointError, ConfigError
from brt_dist.reading import read_text

DEFAULT = "default"
COMMAND_LINE = "command line"
MOST_PROBLEMS = 50  # problems reported in one message
_LARGEST = 2**63 - 1  # also keeps out .inf and .nan


@dataclass(frozen=True)
class Resolved:
    """A valid config and the origin of its values.

    Attributes:
        config: the config.
        provenance: where each value came from, by `section.key`: `default`, `FILE:LINE` or `command line`.
    """

    config: Config
    provenance: dict[str, str]


def load(sources: Path | str | Sequence[Path | str], overrides: Sequence[str] = ()) -> Resolved:
    """Load a config.  Later values win, key by key.

    Args:
        sources: what to read, in order; a Path is a file, a str is YAML text.
        overrides: `key.sub=value`, applied last.

    Raises:
        ConfigError: with all problems at once.
    """
    problems: list[str] = []
    merged: Tree = {}
    for source in [sources] if isinstance(sources, Path | str) else sources:
        _merge(merged, _read(source, problems))
    for override in overrides:
        _merge(merged, _read_override(override, problems))
    known = _known_part(_respelled(merged, problems), Config, "", problems)
    config = _validate(known, problems)
    if config is None or problems:
        raise ConfigError(_message([*problems, *_broken_rules(known, config)]))
    return Resolved(config, {key: _origin(known, key) for key in flatten(config)})


def recorded(values: Mapping[str, Any], where: str) -> Config:
    """The config in a checkpoint, which an earlier version may have written.

    Keys that had no effect on the run are dropped, whatever their value.

    Args:
        values: of the config, as JSON.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: this version cannot read it.
    """
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict):
        values = {**values, "optimizer": drop_optimizer_keys(optimizer, refuse=lambda key, other: None)}
    try:
        return Config.model_validate(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # older spellings are looked up in any values
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        told = humanize(dotted(Config, first["loc"]), first, Config) if first else error
        raise CheckpointError(f"{where}: this version of brt cannot read the config in it ({told})") from None


def dump(config: Config) -> str:
    """The whole config as YAML; `load(dump(config)).config == config`."""
    return write(config.model_dump(mode="json"))


def flatten(config: Config) -> dict[str, Any]:
    """All values as {"section.key": plain value}, in the order of the schema."""
    return dict(leaves(config))


def _read(source: Path | str, problems: list[str]) -> Tree:
    if isinstance(source, str):
        return parse(source, "<text>", problems)
    try:
        text = read_text(source, LONGEST)
    except FileNotFoundError:
        raise ConfigError(f"config file {source}: no such file{_similar_file(source)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"config file {source}: cannot be read ({reason})") from None
    return parse(text, str(source), problems)


def _similar_file(path: Path) -> str:
    if str(path) in leaf_keys(Config):
        return f"; a value is given as {path}=VALUE"
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest: {path.parent / near[0]}" if near else ""


def _read_override(override: str, problems: list[str]) -> Tree:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problems.append(f"{COMMAND_LINE}: {override!r} must have the form key.sub=value, for example run.steps=100")
        return {}
    # parsed as the value of a key, so that any YAML value works: a number, [1, 2], {layers: 2}
    try:
        node = parse(f"value: {value}", COMMAND_LINE, problems, shown=override)["value"]
    except ConfigError as error:
        problems.append(str(error))
        return {}
    for part in reversed(parts):
        node = {part: node}
    assert isinstance(node, dict)
    return node


def _merge(target: Tree, update: Tree) -> None:
    for key, node in update.items():
        present = target.get(key)
        if isinstance(present, dict) and isinstance(node, dict):
            _merge(present, node)
        else:
            target[key] = node


def _respelled(tree: Tree, problems: list[str]) -> Tree:
    """`tree` with keys of earlier versions in their current spelling."""
    return {
        **tree,
        **_respelled_model(tree, problems),
        **_respelled_optimizer(tree, problems),
        **_respelled_parallel(tree),
    }


def _respelled_parallel(tree: Tree) -> Tree:
    """`parallel: auto` in full; otherwise the section without keys that no longer exist."""
    node = tree.get("parallel")
    if isinstance(node, dict) and isinstance(zero := node.get("zero"), dict):
        return {"parallel": {**node, "zero": drop_zero_keys(zero, _plain)}}
    if not isinstance(node, Leaf) or node.value != "auto":
        return {}
    return {"parallel": {"auto": Leaf(True, node.place)}}


def _respelled_model(tree: Tree, problems: list[str]) -> Tree:
    model = tree.get("model")
    if not isinstance(model, dict):
        return {}

    def refuse(key: str, place: str) -> None:
        problems.append(
            f"{first_place(model[key])}: model.{key} is the old name of model.{place} and cannot be combined with "
            f"model.{place.partition('.')[0]}; set model.{place} instead"
        )

    return {"model": move_model_keys(model, refuse, lambda value: Leaf(value, DEFAULT))}


def _respelled_optimizer(tree: Tree, problems: list[str]) -> Tree:
    optimizer = tree.get("optimizer")
    if not isinstance(optimizer, dict):
        return {}

    def refuse(key: str, other: str) -> None:
        problems.append(
            f"{first_place(optimizer[key])}: optimizer.{key} has no effect unless optimizer.name={other}; set that, or "
            "remove the key"
        )

    return {"optimizer": drop_optimizer_keys(optimizer, refuse, _plain)}


def _known_part(tree: Tree, section: type[BaseModel], prefix: str, problems: list[str]) -> Tree:
    """The part of `tree` that the schema knows; the rest is added to `problems`."""
    # every section is present, if only empty, so that missing values are reported one by one
    known: Tree = {name: {} for name in section.model_fields if subsection(section, name)}
    for name, node in tree.items():
        key = prefix + name
        if name not in section.model_fields:
            if len(problems) < MOST_PROBLEMS:  # comparing names takes time
                problems.append(f"{first_place(node)}: {_unknown(section, prefix, name)}")
            continue
        inner, choice = subsection(section, name), choice_of(section, name)
        if inner is not None:
            known[name] = _section(node, inner, key, problems)
        elif choice is None:
            known[name] = Leaf(_plain(node), first_place(node)) if isinstance(node, dict) else node
        elif not choice.is_mapping:
            known[name] = _of_kind(node, choice, choice.default or "", key, problems)
        elif isinstance(node, dict):
            known[name] = {
                kind: _of_kind(inside, choice, kind, f"{key}.{kind}", problems) for kind, inside in node.items()
            }
        elif node.value is not None:
            kinds = ", ".join(choice.kinds)
            problems.append(f"{node.place}: {key} must map names to sections (kinds: {kinds}); got {node.value!r}")
    return known


def _unknown(section: type[BaseModel], prefix: str, name: str) -> str:
    """What to say about a key that the schema does not have."""
    key = prefix + name
    if "." in name and field_of(Config, key) is not None:
        first, _, rest = name.partition(".")
        return f"{key} is written as a section in a file: `{first}:`, and below it, indented, `{rest.split('.')[0]}:`"
    return f"unknown key {key[:80]}{nearest_key(Config, section, prefix, name)}"


def _section(node: Node, section: type[BaseModel], key: str, problems: list[str]) -> Tree:
    if isinstance(node, dict):
        return _known_part(node, section, f"{key}.", problems)
    if node.value is not None:  # a section without keys is empty
        keys = ", ".join(section.model_fields)
        problems.append(f"{node.place}: {key} must be a section with keys {keys}; got {node.value!r}")
    return {}


def _of_kind(node: Node, choice: Choice, default: str, key: str, problems: list[str]) -> Tree:
    """A section of the kind that it names, or else of the default kind."""
    told = node.get(choice.key) if isinstance(node, dict) else None
    kind = default if told is None else _plain(told)
    if not isinstance(kind, str) or kind not in choice.kinds:  # a list is not a kind, and cannot be hashed
        near = difflib.get_close_matches(str(kind)[:200], choice.kinds, n=1)
        nearest = f"; nearest: {near[0]}" if near else ""
        place = first_place(node if told is None else told)
        problems.append(f"{place}: {key}.{choice.key} must be one of {', '.join(choice.kinds)}, not {kind!r}{nearest}")
        return {}
    known = _section(node, choice.kinds[kind], key, problems)
    return {choice.key: Leaf(kind, DEFAULT), **known}


def _validate(tree: Tree, problems: list[str]) -> Config | None:
    """The Config; None if something is wrong, which is then added to `problems`."""
    try:
        # Through JSON: pydantic's strict mode then takes lists for tuples and text for paths, and nothing else.
        config = Config.model_validate_json(json.dumps(_plain(tree)), strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            key = dotted(Config, item["loc"])
            problems.append(_at(_origin(tree, key), humanize(key, item, Config)))
        return None
    problems += [_at(_origin(tree, key), text) for key, text in _unusable(config)]
    return config


def _unusable(config: Config) -> Iterator[tuple[str, str]]:
    """Values of the right type that are unusable: the key, and what is wrong."""
    for key, value in flatten(config).items():
        numbers = value if isinstance(value, list) else [value]
        if (bad := next((text for text in _texts(value) if _unwritable(text)), None)) is not None:
            yield key, f"{key} holds a character that is not text: {bad[:80]!a}"
        if any(isinstance(number, float | int) and not abs(number) <= _LARGEST for number in numbers):
            yield key, f"{key} must be finite and within 64 bits, not {value}"


def _broken_rules(tree: Tree, config: Config | None) -> list[str]:
    """The rules that the valid part of a config breaks, so that all problems are reported at once."""
    left_out: list[str] = []
    if config is None:
        try:
            Config.model_validate_json(json.dumps(_plain(tree)), strict=True)
        except ValidationError as error:
            left_out = [dotted(Config, item["loc"]) for item in error.errors(include_url=False)]
        rest = _without(tree, left_out)
        try:
            config = Config.model_validate_json(json.dumps(_plain(rest)), strict=True)
        except ValidationError:  # a missing value, for example
            return []
    if any(_unusable(config)):  # rules look into folders and count
        return []
    return [problem for problem in broken_rules(config) if not any(key in problem for key in left_out)]


def _without(tree: Tree, keys: Sequence[str], prefix: str = "") -> Tree:
    kept: Tree = {}
    for name, node in tree.items():
        key = prefix + name
        if not any(given == key or (isinstance(node, Leaf) and given.startswith(f"{key}.")) for given in keys):
            kept[name] = _without(node, keys, f"{key}.") if isinstance(node, dict) else node
    return kept


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _unwritable(text: str) -> bool:
    """Whether it has control characters, or bytes of a path that are not UTF-8 (as Python keeps them)."""
    return any(
        (ord(char) < 32 and char not in "\n\t")
        or 127 <= ord(char) < 160
        or char in "\u2028\u2029"
        or 0xD800 <= ord(char) < 0xE000
        for char in text
    )


def _at(place: str, text: str) -> str:
    return text if place == DEFAULT else f"{place}: {text}"


def _origin(tree: Tree, key: str) -> str:
    """The place of a value; for an item of a list, the place of the list."""
    node: Node = tree
    for part in key.split("."):
        if isinstance(node, Leaf):
            break
        if part not in node:
            return DEFAULT
        node = node[part]
    return node.place if isinstance(node, Leaf) else DEFAULT


def _plain(node: Node) -> Any:
    if isinstance(node, Leaf):
        return list(node.value) if isinstance(node.value, tuple) else node.value
    return {key: _plain(inner) for key, inner in node.items()}


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    count = f"{MOST_PROBLEMS} or more" if len(problems) >= MOST_PROBLEMS else len(problems)
    return f"{count} problems in the config:\n" + "\n".join(f"  - {problem}" for problem in problems[:MOST_PROBLEMS])
