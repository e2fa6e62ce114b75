"""Dataclasses as JSON objects, and back.

Reading is tolerant: a field that is missing, or whose value is of another type, gets its default, and fields that the
dataclass does not have are ignored.  The metadata of a field may hold:

* KEY: its name in JSON, if that is not its own;
* REST: it is a mapping that takes all numbers whose keys are not other fields, and is inlined in the object;
* LATER: older versions did not write it, so it is left out if it is empty;
* RANGE: (smallest, largest) value; another counts as missing.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable
from functools import cache
from typing import Any

KEY, REST, LATER, RANGE = "key", "rest", "later", "range"


def plain(value: Any) -> Any:
    """A dataclass, or a tuple of them, as JSON values; anything else unchanged."""
    if dataclasses.is_dataclass(value):
        return plain_fields((one, getattr(value, one.name)) for one in dataclasses.fields(value))
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def plain_fields(fields: Iterable[tuple["dataclasses.Field[Any]", Any]]) -> dict[str, Any]:
    """The JSON object with these fields of a dataclass and their values."""
    found: dict[str, Any] = {}
    for one, value in fields:
        if value in (None, ()) and LATER in one.metadata:
            continue
        found |= value if REST in one.metadata else {_key(one): plain(value)}
    return found


def _key(one: "dataclasses.Field[Any]") -> str:
    return str(one.metadata.get(KEY, one.name))


@cache
def _fields(kind: type) -> tuple[tuple["dataclasses.Field[Any]", Any], ...]:
    """The fields of a dataclass, each with its type."""
    hints = typing.get_type_hints(kind)
    return tuple((one, hints[one.name]) for one in dataclasses.fields(kind))


def record(kind: Any, found: Any) -> Any:
    """The dataclass `kind` from a JSON object.

    Raises:
        TypeError: it is not an object, or lacks a field without a default.
    """
    if not isinstance(found, dict):
        raise TypeError
    values: dict[str, Any] = {}
    for one, type_of_it in _fields(kind):
        if REST in one.metadata:
            known = {_key(other) for other, _ in _fields(kind)}
            rest = {key: value for key, value in found.items() if key not in known}
            values[one.name] = {key: value for key, value in rest.items() if _is_number(value)}
        elif _key(one) in found:
            try:
                value = _value(type_of_it, found[_key(one)])
            except TypeError:
                continue  # as if it were missing
            if RANGE not in one.metadata or one.metadata[RANGE][0] <= value <= one.metadata[RANGE][1]:
                values[one.name] = value
    return kind(**values)


def _value(kind: Any, value: Any) -> Any:
    """`value` if it is of type `kind`, with records made of its objects; TypeError otherwise."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _value(kind, value)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], one) for one in value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return record(kind, value)
    fits = isinstance(value, kind) if kind in (int, str) else kind is float
    if fits and (kind is str or _is_number(value)):
        return value
    raise TypeError


def _is_number(value: Any) -> bool:
    """Whether it is a number to compute with and plot: not a boolean, and not an integer beyond 64 bits."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)
