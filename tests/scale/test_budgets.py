"""The table of docs/scaling.md says what `python -m tests.scale` prints."""

from pathlib import Path

import pytest

from tests.scale.budgets import LAYOUTS, planned, size_rows, sizes
from tests.scale.test_recipes import recipe

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("row", range(6))
def test_sizes_in_the_page_are_those_of_the_configs(row: int) -> None:
    rows = size_rows({name: sizes(planned(recipe(one), changes)) for name, (one, changes) in LAYOUTS.items()})
    assert f"| {' | '.join(rows[row])} |" in PAGE
