"""What a layer costs is linear in the blocks of a segment: counted on tensors without data."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.memory import carried
from brt_dist.parallel.layout import single_process
from tests.scale.activations import Operations, Written

BLOCKS = (4, 8, 16)
MIXERS = {
    "window": {"window": {}},
    "skip": {"recurrent": {"layers": None, "states": 128}},
    "dual, LSTM gate": {"recurrent": {"layers": None, "states": 128, "cell": "dual", "gate": "lstm"}},
}


class Cost(NamedTuple):
    """Of forward and backward; `kept` are bytes from one to the other, `written` those of all results."""

    flops: int
    operations: int
    written: int
    kept: int


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


def cost(mixers: dict[str, Any], blocks: int) -> Cost:
    """The cost of a layer that reads `blocks` blocks of one stream."""
    config = ModelConfig.model_validate(
        {"layers": 1, "width": 256, "heads": 4, "head_dim": 64, "window": 128, "vocab_size": 512, "dropout": 0.0,
         "ffns": {"relu": {"width": 1024}}, "mixers": mixers}
    )  # fmt: skip
    written = Written()
    with torch.device("meta"), FlopCounterMode(display=False) as flops, written, Operations() as operations:
        layer, starts = Layer(config, 0), torch.zeros(1, blocks, dtype=torch.bool)
        x = torch.empty(blocks * config.window, 1, config.width, requires_grad=True)
        memory = layer.blank_memory(1)
        before, written.bytes, operations.count = operations.bytes_left([]), 0, 0
        y, after = layer(x, memory, starts)
        after = carried(after)
        kept = operations.bytes_left([y, *after.values()]) - before
        y.sum().backward()
    return Cost(flops.get_total_flops(), operations.count, written.bytes, kept)


@pytest.mark.parametrize("name", MIXERS)
def test_each_block_costs_as_much_as_the_ones_before(name: str) -> None:
    few, more, most = (cost(MIXERS[name], blocks) for blocks in BLOCKS)
    for what, a, b, c in zip(Cost._fields, few, more, most, strict=True):
        assert a > 0 and c - b == 2 * (b - a), (what, a, b, c)


def test_flops_of_window_attention_are_proportional_to_the_blocks() -> None:
    few, more = (cost(MIXERS["window"], blocks).flops for blocks in BLOCKS[:2])
    assert more == 2 * few
