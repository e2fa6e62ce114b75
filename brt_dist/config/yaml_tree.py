"""YAML with line numbers.  Safe (no objects); duplicate keys are errors, `1e-3` is a number, dates are plain text."""

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


class _Loader(yaml.SafeLoader):
    """SafeLoader of YAML 1.1, without its two surprises for configs."""


# PyYAML reads 1e-3 as text (YAML 1.1 wants 1.0e-3) and 2026-01-01 as a date, which no field here is.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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
    loader = _Loader(text)
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
            tree[key] = Leaf(_plain(loader.construct_object(value_node, deep=True)), place)
    return tree


def _plain(value: Any) -> Any:
    """JSON values as they are; others (sets, bytes) as text, which the schema then refuses."""
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
    if shown is not None:
        return f"{name}: {shown!r}: the text after '=' is not a YAML value ({problem}); put quotes around it"
    mark = getattr(error, "problem_mark", None)
    return f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML ({problem})"
