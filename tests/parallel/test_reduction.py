"""Gradients scattered during the backward pass equal those reduced to all ranks after it."""

from typing import Any

import pytest
import torch

from tests.parallel.cases import config, join, train_on_rank
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow


def test_buckets_overlap_and_scattering_change_no_bit(ranks: RankPool) -> None:
    """Without clipping: the norm is a sum in another order."""
    outcomes = []
    for zero in ({"overlap": False, "reduce_scatter": False}, {"reduce_bucket": 2000}):
        parallel: dict[str, Any] = {"data": 2, "pipeline": 2, "zero": zero}
        given = config(parallel, optimizer={"name": "adamw", "clip_norm": None}, precision="bf16")
        outcomes.append(join(ranks.run(4, train_on_rank, given, 3)))
    whole, scattered = outcomes
    assert whole.losses == scattered.losses
    assert all(torch.equal(value, scattered.weights[name]) for name, value in whole.weights.items())
    assert all(torch.equal(value, scattered.memory[name]) for name, value in whole.memory.items())
