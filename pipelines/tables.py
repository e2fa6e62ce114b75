"""Tables for people.  A terminal wraps long values; anywhere else (a file, a pipe) every row is one whole line."""

import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 1 << 20  # columns: no value is ever wrapped or cut


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), dim: str | None = None
) -> "Table":
    """A table without lines.

    Args:
        head: names of the columns; all empty for a table without a head.
        rows: one text for each column.
        right: columns that are right-aligned, as numbers are.
        dim: rows that end in this are dim on a terminal.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(head), header_style="bold")
    for name in head:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row), style="dim" if dim is not None and row[-1] == dim else None)
    return made


def text_of(made: "Table") -> str:
    """The table as lines, none of them wrapped or cut."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=_WIDE, highlight=False, color_system=None).print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def show(made: "Table", file: IO[str] | None = None) -> None:
    """Print the table, by default on standard output: as wide as the terminal, or whole if there is none."""
    file = file or sys.stdout
    if not file.isatty():
        print(text_of(made), file=file)
        return
    from rich.console import Console

    Console(file=file, highlight=False).print(made)
