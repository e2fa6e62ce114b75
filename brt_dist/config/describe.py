"""What each key of the config means: for `brt config keys`."""

import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from brt_dist.config.keys import field_of, leaf_keys, subsection
from brt_dist.config.section import choice_of


@dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
        name: dotted.
        default: as a JSON value; also None if it is unset.
        required: it has no default.
        choices: the values that it may have, if there are only a few.
        meaning: its description.
    """

    name: str
    default: Any
    required: bool
    choices: tuple[str, ...]
    meaning: str


def described(root: type[BaseModel]) -> Iterator[Key]:
    """Every key, in the order of the schema; sections of a mapping under the names of their kinds."""
    for name in leaf_keys(root):
        field = field_of(root, name)
        if field is None:
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        required = default is PydanticUndefined
        yield Key(
            name,
            None if required else to_jsonable_python(default),
            required,
            _kinds(root, name) or tuple(_choices(field.annotation)),
            field.description or "",
        )


def _kinds(root: type[BaseModel], key: str) -> tuple[str, ...]:
    """The kinds of a section, if `key` is the one that names its kind."""
    section, _, last = key.rpartition(".")
    name, _, rest = section.partition(".")
    choice, inner = choice_of(root, name), subsection(root, name) if name in root.model_fields else None
    if inner is not None:
        return _kinds(inner, key.partition(".")[2])
    if choice is None or last != choice.key or "." in rest or choice.is_mapping != bool(rest):
        return ()
    return tuple(choice.kinds)


def plain(value: Any) -> str:
    """A value as a user types it."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value)


def _choices(annotation: Any) -> Iterator[str]:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        yield from (plain(value) for value in typing.get_args(annotation))
    elif annotation is bool:
        yield from ("true", "false")
    elif origin in (types.UnionType, typing.Union, typing.Annotated):
        for inner in typing.get_args(annotation):
            yield from _choices(inner)
