"""The base class of config sections, and fields that hold a section of one of several kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Discriminator, GetJsonSchemaHandler, Tag

from brt_dist.registry import Registry


class Section(BaseModel):
    """A section of the config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Choice:
    """Marks a field that holds a section of one of several kinds, or a mapping from names to such sections.

    Attributes:
        kinds: table of the kinds; its classes are sections.
        key: the key of a section that names its kind.
        default: the kind of a section that does not name one.  None: the field is a mapping, and the kind defaults to
            the section's name in it.
    """

    kinds: Registry[Any]
    key: str
    default: str | None

    @property
    def is_mapping(self) -> bool:
        return self.default is None

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Require the key of the kind for all but the default, so that editors match a section to a single kind."""
        schema = handler(core_schema)
        if "oneOf" in schema:
            kinds = zip(self.kinds, schema["oneOf"], strict=True)
            schema["oneOf"] = [
                each if name == self.default else {"allOf": [each], "required": [self.key]} for name, each in kinds
            ]
        return schema


def one_of(kinds: Registry[Any], key: str, default: str) -> Any:
    """The type of a field that holds a section of one of `kinds`."""
    return Annotated[_union(kinds, key, default), Choice(kinds, key, default)]


def some_of(kinds: Registry[Any], key: str) -> Any:
    """The type of a field that maps names to sections of any of `kinds`."""
    mapping: Any = Mapping
    return Annotated[mapping[str, _union(kinds, key, None)], Choice(kinds, key, None)]


def _union(kinds: Registry[Any], key: str, default: str | None) -> Any:
    def kind_of(given: Any) -> Any:
        return given.get(key, default) if isinstance(given, Mapping) else getattr(given, key, None)

    if len(kinds) == 1:
        return next(iter(kinds.values()))
    tagged: Any = tuple(Annotated[section, Tag(name)] for name, section in kinds.items())
    return Annotated[Union[tagged], Discriminator(kind_of)]  # noqa: UP007 - made at run time


def choice_of(section: type[BaseModel], name: str) -> Choice | None:
    """The Choice of the field `name` of a section; None if the field does not come in kinds."""
    field = section.model_fields.get(name)
    return next((item for item in field.metadata if isinstance(item, Choice)), None) if field else None
