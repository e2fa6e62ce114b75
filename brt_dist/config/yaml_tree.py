"""YAML with line numbers.  Safe (no objects); duplicate keys are errors, plain values follow YAML 1.2."""

import json
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from brt_dist.errors import ConfigError


@dataclass(frozen=True)
class Leaf:
    """A value other than a mapping, and its place (`file:line`)."""

    value: Any
    place: str


Tree: TypeAlias = dict[str, "Node"]
Node: TypeAlias = Tree | Leaf


LONGEST = 1 << 17  # characters of a config; ours have a few thousand

# what PyYAML raises if a value does not match its explicit tag (!!int)
_UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, OverflowError)

_TAG = "tag:yaml.org,2002:"
# Plain values as YAML 1.2, and people, read them.  YAML 1.1, PyYAML's version, would read 0100 as 64, 1:30 as 90, `on`
# as true, 2026-01-01 as a date, and 1e-3 as text.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain values above."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that our loader, or one for YAML 1.1, would not read back as text."""


def _use(kind: Any, but: frozenset[str] = frozenset()) -> None:
    """Add the plain values above to a loader or dumper, which keeps those of YAML 1.1 named in `but`."""
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in but]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, (pattern, firsts) in _PLAIN.items():
        kind.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), firsts)


_use(_Loader)
_use(_Dumper, but=frozenset(("null", "bool", "int", "float", "timestamp", "merge", "value")))


def write(values: Any) -> str:
    """Plain values as YAML, in their order; :func:`parse` reads the same values back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse(text: str, name: str, problems: list[str], shown: str | None = None) -> Tree:
    """Parse YAML text into a tree.

    Args:
        text: the YAML.
        name: prefix of places (`name:line`).
        problems: keys that cannot be used are left out of the tree, and a message is added here.
        shown: text of an override; places are then `name` alone.

    Raises:
        ConfigError: the text as a whole cannot be read.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{name}: {len(text):,} characters are too many for a config; at most {LONGEST:,} are read")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(_syntax(error, name, shown)) from None
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            kind = "list" if isinstance(root, yaml.SequenceNode) else "single value"
            raise ConfigError(f"{name}: must be a mapping of sections (model:, data:, ...), not a {kind}")
        return _mapping(loader, root, name, shown, problems)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(error, name, shown)) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    finally:
        loader.dispose()


def _mapping(loader: _Loader, root: yaml.MappingNode, name: str, shown: str | None, problems: list[str]) -> Tree:
    tree: Tree = {}
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        place = name if shown else f"{name}:{line}"
        if key_node.tag != "tag:yaml.org,2002:str":  # a number, a list, a merge key (<<), an object
            problems.append(f"{place}: a key must be a plain name (in quotes if it looks like a number)")
            continue
        key = str(key_node.value)
        if key in tree:
            problems.append(f"{place}: {key} is set twice (first at {first_place(tree[key])})")
            continue
        if isinstance(value_node, yaml.MappingNode):
            # as a leaf, an empty mapping keeps its place; it means the same as a section without keys
            tree[key] = _mapping(loader, value_node, name, shown, problems) if value_node.value else Leaf(None, place)
        else:
            try:
                value = _plain(loader.construct_object(value_node, deep=True))
                json.dumps(value)  # no integers with thousands of digits, no list within itself
            except _UNREADABLE:
                given = str(getattr(value_node, "value", ""))[:40]
                problems.append(f"{place}: {key}: {given!r} cannot be read as {value_node.tag.removeprefix(_TAG)}")
            else:
                tree[key] = Leaf(value, place)
    return tree


def _plain(value: Any) -> Any:
    """JSON values unchanged; others (sets, bytes) as text, which the schema then refuses."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def first_place(node: Node) -> str:
    """Where a value, or the first value below a mapping, is written."""
    while isinstance(node, dict):
        node = next(iter(node.values()), Leaf(None, "unknown place"))
    return node.place


def _syntax(error: yaml.YAMLError, name: str, shown: str | None) -> str:
    problem = getattr(error, "problem", None) or "cannot be read"
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"character U+{ord(error.character) if isinstance(error.character, str) else error.character:04X}"
        if shown is not None:
            return f"{name}: {shown[:80]!a}: {problem} is not text; use valid UTF-8"
        return f"{name}: {problem} at position {error.position} is not allowed in YAML; is it a text file in UTF-8?"
    if shown is not None:
        return f"{name}: {shown!r}: the text after '=' is not a YAML value ({problem}); put quotes around it"
    mark = getattr(error, "problem_mark", None)
    return f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML ({problem})"
