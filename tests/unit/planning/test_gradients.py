"""Which copies ZeRO makes of gradients, by hand."""

import pytest

from brt_dist.planning.gradients import Parameters, most_copied


@pytest.mark.parametrize(
    ("layers", "shards", "expected"),
    [
        ((4, 4, 4, 4), 1, 16),
        ((4, 4, 4, 4), 2, 8),  # a cut between parameters copies nothing twice
        ((4, 8, 4), 2, 12),  # both ranks copy all of the one in the middle
        ((2, 9, 1), 4, 11),  # ranges of 3: the first has the end of 2 and the beginning of 9
        ((100,), 4, 100),
        ((), 4, 0),
    ],
)
def test_a_rank_copies_all_parameters_of_which_it_updates_a_part(
    layers: tuple[int, ...], shards: int, expected: int
) -> None:
    assert most_copied(Parameters(layers, 0), shards) == expected
    assert most_copied(Parameters(layers, 50), shards) == expected + 50  # the embedding is cut apart from layers
