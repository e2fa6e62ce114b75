"""The selection of parity cases: nothing that may run together goes untested together."""

from tests.parallel.matrix import LAYOUTS, VARIANTS, Case, full, pairs, pairwise


def test_every_pair_of_options_meets() -> None:
    every, chosen = full(), pairwise(full())
    assert set(chosen) <= set(every)
    assert {pair for case in chosen for pair in pairs(case)} == {pair for case in every for pair in pairs(case)}
    assert len(chosen) < len(every) / 5


def test_the_selection_is_the_same_each_time() -> None:
    assert pairwise(full()) == pairwise(full())


def test_the_matrix_is_whole() -> None:
    every = full()
    stages = {name: 1 if "pipeline" in sizes else 4 for name, sizes in LAYOUTS.items()}  # of ZeRO
    splits = {
        name: 2 if "tensor" in sizes else 1 for name, sizes in LAYOUTS.items()
    }  # without and with sequence parallel
    with_recompute = (2 * stages[name] * splits[name] for variant in VARIANTS.values() for name in variant.layouts)
    assert len(every) == sum(with_recompute)
    assert len({case.name for case in every}) == len(every)
    assert not Case("skip-fixed", "pp2", False, False, 3).is_allowed
    assert not Case("skip-fixed", "dp2", False, True, 1).is_allowed
