"""A table of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReportTable:
    """A heading with a table below it; `text`: its cells are text whose line breaks count."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: bool = False
