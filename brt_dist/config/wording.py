"""Turns pydantic's validation errors into our own wording."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from brt_dist.config.keys import field_of

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (put quotes around it)",
    "path_type": "a path",
    "place_type": "a folder or a URL",
    "tuple_type": "a list, for example [-3]",
    "list_type": "a list",
    "dict_type": "a mapping, for example {name: value}",
    "finite_number": "a finite number",
    "string_too_short": "non-empty text",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def humanize(key: str, error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Format an error of pydantic's `errors()` as `KEY must be ..., not VALUE`."""
    kind, context = error["type"], error.get("ctx", {})
    name, _, item = key.rpartition(".")
    if item.isdigit():  # an item of a list
        if kind == "missing":
            return f"{name} is too short: item {int(item) + 1} is missing"
        key = f"item {int(item) + 1} of {name}"
    if kind == "missing":
        description = _description(key, root)
        return f"{key} is missing" + (f" ({description})" if description else "")
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        wanted = f"{words} {context[name]:g}"
    elif kind == "literal_error":
        wanted = context["expected"]
    elif kind == "too_long":
        wanted = f"a list of {context['max_length']} items"
    elif kind == "string_pattern_mismatch":
        wanted = f"as described ({_description(key, root)})"
    elif kind in _WANTED:
        wanted = _WANTED[kind]
    else:
        return f"{key}: {error['msg'][:1].lower()}{error['msg'][1:]}, not {_shown(error['input'])}"
    return f"{key} must be {wanted}, not {_shown(error['input'])}"


def _shown(value: Any) -> str:
    text = "empty" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _description(key: str, root: type[BaseModel]) -> str | None:
    field = field_of(root, key)
    return field.description if field else None
