"""A token costs the same wherever it stands, and no more than in training, with mixers that carry sums or states."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.generation.decoder import Decoder
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.layout import single_process
from brt_dist.planning.flops import forward_flops

KINDS: dict[str, dict[str, Any]] = {"linear": {}, "delta": {}, "gated_delta": {}, "memsizer": {"rows": 8}, "lstm": {}}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow(kind: str) -> None:
    given = ModelConfig.model_validate(
        {
            "layers": 2, "width": 32, "heads": 2, "head_dim": 16, "window": 16, "vocab_size": 64,
            "mixers": {kind: KINDS[kind]}, "ffns": {"relu": {"width": 64}},
        }
    )  # fmt: skip
    decoder = Decoder(BlockRecurrentModel(given, seed=1).eval(), 1)
    costs = []
    for token in range(40):
        with FlopCounterMode(display=False) as counted:
            decoder.feed({0: [token]})
        costs.append(counted.get_total_flops())
    assert len(set(costs)) == 1
    assert costs[0] <= forward_flops(given, executed=True)
