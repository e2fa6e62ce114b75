"""What crosses between stages in a step."""

import pytest
import torch

from tests.scale.settings import small
from tests.scale.world import fake_world

MICRO_BATCHES = 3


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("parallel", [{}, {"tensor": 2}, {"tensor": 2, "sequence_parallel": True}])
def test_only_hidden_states_and_their_gradients_cross(parallel: dict[str, object], stage: int) -> None:
    """One tensor per micro-batch and direction, whole or (with sequence parallel) a rank's tokens."""
    config = small({"pipeline": 3, **parallel}, micro_batches=MICRO_BATCHES)
    with fake_world(config, rank=stage * config.parallel.tensor) as world, world.engine() as engine:
        engine.train_step(world.inputs(), 1e-3)  # the shapes are sent once
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
    rows = 32 // (2 if "sequence_parallel" in parallel else 1)
    neighbours = (stage > 0) + (stage < 2)
    for op in ("send", "recv"):
        crossed = [(one.dtype, one.shape) for one in recorder.of(op=op)]
        assert crossed == [(torch.bfloat16, (rows, 1, 32))] * MICRO_BATCHES * neighbours
    if "sequence_parallel" not in parallel:
        assert not recorder.of("tensor", "all_gather")
    assert all("pipe/engine" not in read.where for read in recorder.host_reads)
