"""Tables of docs/scaling.md that a command writes, each between two markers."""

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


class Markers(NamedTuple):
    """What stands before and behind a table."""

    begin: str
    end: str


BUDGETS = Markers("<!-- table of python -m tests.scale -->", "<!-- end of the table -->")
PEAKS = Markers("<!-- peaks: python -m tests.scale.peaks -->", "<!-- end of peaks -->")
PROCESSES = Markers("<!-- processes: python -m tests.parallel.memory -->", "<!-- end of processes -->")
SLOWED = Markers("<!-- slowed: python -m tests.parallel.slowed -->", "<!-- end of slowed -->")
GOODPUT = Markers("<!-- goodput: python -m tests.parallel.goodput -->", "<!-- end of goodput -->")


def table_of(page: str, markers: Markers = BUDGETS) -> list[str]:
    """The lines of the table that a page has."""
    return page.partition(markers.begin)[2].partition(markers.end)[0].strip().splitlines()


def with_table(page: str, lines: list[str], markers: Markers = BUDGETS) -> str:
    """The page with another table."""
    head, _, rest = page.partition(markers.begin)
    return "\n".join([head + markers.begin, *lines, markers.end]) + rest.partition(markers.end)[2]
