"""The table of docs/scaling.md is that of `python -m tests.scale`: its rows, and those that follow from the configs."""

from collections import Counter

import pytest

from tests.scale.budgets import COUNTED, DERIVED, LAYOUTS, derived, planned, table
from tests.scale.meta import meta_world
from tests.scale.page import PAGE, table_of, with_table
from tests.scale.settings import small
from tests.scale.starting import drawn, loaded
from tests.scale.test_recipes import recipe

FOUND = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_of(PAGE.read_text())]


def test_the_page_has_the_rows_of_the_command() -> None:
    assert FOUND[0][1:] == list(LAYOUTS)
    assert [row[0] for row in FOUND[2:]] == [*COUNTED, *DERIVED]
    assert all(cell for row in FOUND[1:] for cell in row)


@pytest.mark.parametrize(("place", "name"), list(enumerate(LAYOUTS, start=1)))
def test_sizes_in_the_page_are_those_of_the_configs(place: int, name: str) -> None:
    one, changes = LAYOUTS[name]
    cells = {row[0]: row[place].rpartition("→")[2].strip() for row in FOUND[2:]}
    assert {label: cells[label] for label in DERIVED} == derived(planned(recipe(one), changes))


def test_what_a_rank_draws_and_reads_is_what_it_keeps() -> None:
    with meta_world(small({"data": 4})) as world, world.engine() as engine:
        kept: Counter[str] = Counter()
        for piece in engine.pieces():
            kept[piece.tensor.name.partition("/")[0]] += piece.region.size * piece.tensor.dtype.itemsize
        assert loaded(engine) == kept
        weights, ones = kept["weights"] // 4, sum(p.size for p in engine.parameters if not p.initializer.is_random)
        assert weights - ones <= drawn(engine) <= weights


def test_a_table_is_written_between_the_markers() -> None:
    page = PAGE.read_text()
    lines = ["| a |", "| --- |"]
    changed = with_table(page, lines)
    assert table_of(changed) == lines
    assert with_table(changed, table_of(page)) == page
    assert (
        table({name: dict.fromkeys((*COUNTED, *DERIVED), "1") for name in LAYOUTS})[0]
        == f"|  | {' | '.join(LAYOUTS)} |"
    )
