"""The console for people: standard error, or standard output for requested output."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = True) -> "Console":
    """A console that prints text verbatim: `[/b]` in a path or a name is not markup, `:x:` is not an emoji."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
