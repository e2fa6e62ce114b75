from collections.abc import Iterator

import pytest

from tests.parallel.pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """One for all tests of the folder: its imports are done once."""
    with RankPool() as pool:
        yield pool
