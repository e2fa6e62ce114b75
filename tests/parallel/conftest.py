from collections.abc import Iterator

import pytest

from tests.parallel.pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Eight ranks, started once for all tests of the folder."""
    with RankPool(8) as pool:
        yield pool
