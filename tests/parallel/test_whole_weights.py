"""The weights gathered on rank 0 are whole and the same in every layout."""

from typing import Any

import numpy as np
import pytest

from brt_dist.config.schema import Config
from tests.parallel.cases import config
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-dp2-zero1": {"tensor": 2, "data": 2, "zero_stage": 1},
}


def rank_main(rank: int, store: str, given: Config) -> dict[str, Any]:
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.parallel.whole_weights import whole_weights

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    engine = build_engine(given, layout, device)
    try:
        return {name: tensor.numpy() for name, tensor in whole_weights(engine).items()}
    finally:
        engine.close()
        finalize()


@pytest.fixture(scope="module")
def one(ranks: RankPool) -> dict[str, Any]:
    (found,) = ranks.run(1, rank_main, config())
    return dict(found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rank_0_has_all_of_them(ranks: RankPool, one: dict[str, Any], name: str) -> None:
    given = config(LAYOUTS[name])
    first, *others = ranks.run(given.parallel.world_size, rank_main, given)
    assert not any(others)
    assert first.keys() == one.keys() and "embedding.weight" in first
    for weight, values in one.items():
        assert np.array_equal(first[weight], values), weight
