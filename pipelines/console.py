"""The console for people: standard error, or standard output for what was asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = True) -> "Console":
    """A console that prints text as it is: `[/b]` in a path or a name is no markup, `:x:` no picture."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
