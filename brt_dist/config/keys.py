"""The keys of the config: list them, look them up, and find the nearest to an unknown one.

The sections of a mapping (`model.mixers`) may have any name; here their keys are listed under the names of the kinds.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from brt_dist.config.aliases import key_meant
from brt_dist.config.section import Section, choice_of

_LONGEST_NAME = 200


def subsection(section: type[BaseModel], name: str) -> type[Section] | None:
    """The class of a section that is always of one kind; None for anything else."""
    kind = section.model_fields[name].annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def leaf_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings below `section`, with those of every kind; each name once."""
    for name in section.model_fields:
        inner, choice = subsection(section, name), choice_of(section, name)
        if inner is not None:
            yield from leaf_keys(inner, f"{prefix}{name}.")
        elif choice is None:
            yield prefix + name
        elif choice.is_mapping:
            for kind, class_ in choice.kinds.items():
                yield from leaf_keys(class_, f"{prefix}{name}.{kind}.")
        else:
            found = (key for class_ in choice.kinds.values() for key in leaf_keys(class_, f"{prefix}{name}."))
            yield from dict.fromkeys(found)


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and plain value of every setting in `section`, in the order of the schema."""
    yield from _leaves(section, section.model_dump(mode="json"), prefix)


def _leaves(section: Section, plain: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value, choice = getattr(section, name), choice_of(type(section), name)
        if isinstance(value, Section):
            yield from _leaves(value, plain[name], f"{prefix}{name}.")
        elif choice is not None and choice.is_mapping:
            for key, inner in value.items():
                yield from _leaves(inner, plain[name][key], f"{prefix}{name}.{key}.")
        else:
            yield prefix + name, plain[name]


def field_of(root: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a dotted key names.

    If its section comes in kinds, that of the kind which the section is named after (`model.mixers.delta`), or else of
    the first kind that has such a field.
    """
    name, _, rest = key.partition(".")
    field, choice = root.model_fields.get(name), choice_of(root, name)
    if not rest or field is None:
        return field
    if choice is None:
        inner = subsection(root, name)
        return field_of(inner, rest) if inner is not None else None
    kinds = list(choice.kinds.values())
    if choice.is_mapping:
        within, _, rest = rest.partition(".")
        kinds = [*(class_ for kind, class_ in choice.kinds.items() if kind == within), *kinds]
    found = (field_of(class_, rest) for class_ in kinds)
    return next((field for field in found if field is not None), None)


def is_key(root: type[BaseModel], key: str) -> bool:
    """Whether a dotted name belongs to a setting or a section; sections of a mapping may have any name."""
    name, _, rest = key.partition(".")
    if name not in root.model_fields:
        return False
    inner, choice = subsection(root, name), choice_of(root, name)
    if not rest or inner is not None:
        return not rest or (inner is not None and is_key(inner, rest))
    if choice is None:
        return False
    if choice.is_mapping:
        rest = rest.partition(".")[2]
    return not rest or any(is_key(kind, rest) for kind in choice.kinds.values())


def _kinds_with(root: type[BaseModel], key: str) -> list[str]:
    """The kinds that have the field named by a dotted key, if its section comes in kinds."""
    name, _, rest = key.partition(".")
    choice = choice_of(root, name)
    if choice is None:
        inner = subsection(root, name) if name in root.model_fields else None
        return _kinds_with(inner, rest) if inner is not None and rest else []
    if choice.is_mapping:
        rest = rest.partition(".")[2]
    return [kind for kind, class_ in choice.kinds.items() if rest in class_.model_fields]


def dotted(root: type[BaseModel], location: Sequence[Any]) -> str:
    """The dotted key of a location in a pydantic error, where the kind of a section is an item of its own."""
    parts, section = [], root
    rest = list(location)
    while rest:
        name = str(rest.pop(0))
        parts.append(name)
        if not hasattr(section, "model_fields") or name not in section.model_fields:
            continue
        inner, choice = subsection(section, name), choice_of(section, name)
        if inner is not None:
            section = inner
        elif choice is not None:
            if choice.is_mapping and rest:
                parts.append(str(rest.pop(0)))
            if len(choice.kinds) > 1 and rest and rest[0] in choice.kinds:
                section = choice.kinds[rest.pop(0)]
            elif rest:
                section = next(iter(choice.kinds.values()))
    return ".".join(parts)


def nearest_key(root: type[BaseModel], section: type[BaseModel], prefix: str, name: str) -> str:
    """The end of a message about an unknown key: the most similar key in its section, or else in any section."""
    meant = key_meant(name)
    if meant is not None:
        return f"; it is called {meant} here"
    if len(name) > _LONGEST_NAME:  # not a misspelling, and slow to compare
        return f"; valid here: {', '.join(section.model_fields)}"
    near = difflib.get_close_matches(name, section.model_fields, n=1)
    if near:
        return f"; nearest: {prefix}{near[0]}"
    others = _kinds_with(root, prefix + name)
    if others:
        return f" (only {' and '.join(others)} has it); valid here: {', '.join(section.model_fields)}"
    everywhere = {key.rpartition(".")[2]: key for key in leaf_keys(root)}
    near = difflib.get_close_matches(name, everywhere, n=1)
    return f"; nearest: {everywhere[near[0]]}" if near else f"; valid here: {', '.join(section.model_fields)}"
