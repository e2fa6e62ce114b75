"""What an optimizer adds to the collectives of a step."""

from collections import Counter
from typing import Any

import pytest

from brt_dist.optim import adafactor
from tests.scale.settings import small
from tests.scale.world import fake_world

# a layout, and over how many ranks it spreads a parameter
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "dp4": ({"data": 4}, 4),
    "tp2-dp4-zero0": ({"tensor": 2, "data": 4, "zero_stage": 0}, 2),
    "tp2-dp4": ({"tensor": 2, "data": 4}, 8),
    "tp2-pp2-dp4": ({"tensor": 2, "pipeline": 2, "data": 4}, 8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adafactor_adds_two_all_reduces_to_a_step(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(adafactor, "FACTOR_FROM", 16)
    parallel, ranks = LAYOUTS[layout]
    added = all_reduces(parallel, "adafactor") - all_reduces(parallel, "adamw")
    assert [size for (size, _), count in added.items() for _ in range(count)] == [ranks, ranks]


def all_reduces(parallel: dict[str, Any], optimizer: str) -> Counter[tuple[int, int]]:
    """Of a step, by ranks and bytes."""
    config = small(parallel, "bf16" if parallel.get("zero_stage", 1) else "fp32", {"name": optimizer})
    with fake_world(config, rank=1) as world, world.engine() as engine:
        engine.train_step(world.inputs(), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
    return Counter((one.ranks, one.bytes) for one in recorder.of(op="all_reduce"))
