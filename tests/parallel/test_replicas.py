"""Copies of a weight on two real ranks: equal after training, and a difference of one ulp is found and named."""

from typing import Any

import pytest

from brt_dist.config.schema import Config
from tests.parallel import cases
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

# a layout, and a weight that both of its ranks hold
LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "dp2-zero0": ({"data": 2, "zero_stage": 0}, "final_norm.weight"),
    "tp2-sequence": ({"tensor": 2, "sequence_parallel": True}, "final_norm.weight (master values)"),
    "pp2": ({"pipeline": 2}, "embedding.weight (master values)"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_ulp_on_one_rank_is_found(ranks: RankPool, layout: str) -> None:
    parallel, weight = LAYOUTS[layout]
    given = cases.config(parallel=parallel, precision="fp32" if "zero0" in layout else "bf16")
    for found in ranks.run(2, looks, given, weight):
        assert found == (False, True, [(weight, (1,), (0,))])


def looks(rank: int, store: str, given: Config, weight: str) -> tuple[bool, bool, list[Any]]:
    """Whether copies differ after three steps; whether and which do when rank 1 has moved `weight` by one ulp."""
    import torch
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.parallel.replicas import Replicas
    from brt_dist.parallel.step_input import step_input

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    engine = build_engine(given, layout, device)
    try:
        for number, (plan, segments) in enumerate(cases.read_steps(given, steps=3), 1):
            here = cases.segments_of(segments, list(layout.local_streams))
            engine.train_step(step_input(number, plan, here, layout, device), 1e-3)
        replicas = Replicas(layout, engine.held_weights, device)
        before = replicas.differ()
        if rank == 1:
            (values,) = (one.values for one in engine.held_weights() if one.name == weight)
            with torch.no_grad():
                values[5] = torch.nextafter(values[5], torch.tensor(torch.inf))
        after = replicas.differ()
        return before, after, [(one.weight, one.ranks, one.others) for one in replicas.find()]
    finally:
        engine.close()
        finalize()
