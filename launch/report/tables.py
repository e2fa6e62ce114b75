"""A table of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReportTable:
    """A heading with a table below it; `text`: line breaks in its cells are kept."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: bool = False
