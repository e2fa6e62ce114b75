"""kill -9 at any moment loses nothing that a resume does not redo.

As a table: `python -m tests.parallel.kills`.
"""

from pathlib import Path

import pytest

from tests.parallel.kills import LAYOUTS, MOMENTS, hammer
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.long] if name == "dp2-zero1" else []) for name in LAYOUTS]
)
def test_a_killed_run_ends_as_the_one_that_was_not(ranks: RankPool, tmp_path: Path, layout: str) -> None:
    found = hammer(ranks, tmp_path, LAYOUTS[layout], seed=list(LAYOUTS).index(layout))
    assert set(found.kills) == set(MOMENTS) and found.attempts >= len(MOMENTS) + found.runs
    assert found.differences == []
