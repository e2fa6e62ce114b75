"""Tables of kinds (of mixers, optimizers, backends, ...), which find a class by name.

A table maps a name to `package.module:Class`.  The module is imported when the kind is first looked up, so a table
costs nothing to import and may be defined in a lower layer than the classes that it names.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from brt_dist.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """The kinds of one thing: a read-only mapping from name to class.

    Args:
        what: what these are kinds of, for messages ("mixer").
        places: `package.module:Class` by name.
    """

    def __init__(self, what: str, places: Mapping[str, str]) -> None:
        self.what = what
        self._places = dict(places)

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            ConfigError: there is no such kind; the message lists the kinds that exist.
        """
        if name not in self._places:
            near = difflib.get_close_matches(str(name), self._places, n=1)
            nearest = f"; nearest: {near[0]}" if near else ""
            raise ConfigError(f"unknown {self.what} {name!r}{nearest}; known: {', '.join(self._places)}")
        module, _, attribute = self._places[name].partition(":")
        return cast(type[T], getattr(importlib.import_module(module), attribute))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places
