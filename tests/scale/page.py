"""The table of budgets in docs/scaling.md, between two markers."""

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
_BEGIN, _END = "<!-- table of python -m tests.scale -->", "<!-- end of the table -->"


def table_of(page: str) -> list[str]:
    """The lines of the table that a page has."""
    return page.partition(_BEGIN)[2].partition(_END)[0].strip().splitlines()


def with_table(page: str, lines: list[str]) -> str:
    """The page with another table."""
    head, _, rest = page.partition(_BEGIN)
    return "\n".join([head + _BEGIN, *lines, _END]) + rest.partition(_END)[2]
