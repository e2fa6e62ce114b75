"""A token costs the same at any position, and no more than in training, with mixers that carry sums or states."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.generation.decoder import Decoder
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.layout import single_process
from brt_dist.planning.flops import forward_flops
from tests.scale.activations import Operations, Written

KINDS: dict[str, dict[str, Any]] = {"linear": {}, "delta": {}, "gated_delta": {}, "memsizer": {"rows": 8}, "lstm": {}}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


class Cost(NamedTuple):
    """Of one token; `written` are the bytes of all results, `kept` those of what was read."""

    flops: int
    operations: int
    written: int
    kept: int


def cost(decoder: Decoder, token: int) -> Cost:
    written = Written()
    with FlopCounterMode(display=False) as flops, Operations() as operations, written:
        decoder.feed({0: [token]})
    return Cost(flops.get_total_flops(), operations.count, written.bytes, decoder.carried_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow(kind: str) -> None:
    """In operations, in bytes of their results and in bytes kept, after any number of tokens."""
    given = ModelConfig.model_validate(
        {
            "layers": 2, "width": 32, "heads": 2, "head_dim": 16, "window": 16, "vocab_size": 64,
            "mixers": {kind: KINDS[kind]}, "ffns": {"relu": {"width": 64}},
        }
    )  # fmt: skip
    decoder = Decoder(BlockRecurrentModel(given, seed=1).eval(), 1)
    decoder.feed({0: [1]})  # so the last token of each count is the first of its window, which closes the one before
    early = [cost(decoder, token) for token in range(16)]
    for token in range(320):
        decoder.feed({0: [token % 64]})
    late = [cost(decoder, token) for token in range(16)]
    assert decoder.read == [353] and late == early
    assert len(set(early[:15])) == 1 and early[15].flops == early[0].flops and early[15].kept == early[0].kept
    assert min(early[0]) > 0 and early[0].flops <= forward_flops(given, executed=True)
