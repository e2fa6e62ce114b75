"""The plan of memory against what engines keep: every tensor that is alive when the update begins."""

from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.planning.memory import needed_by
from tests.scale.live import Live
from tests.scale.meta import meta_world

GB = 1e9


def config(parallel: dict[str, Any], precision: str = "bf16", streams: int = 4, **model: Any) -> Config:
    shape = {"layers": 4, "width": 256, "heads": 4, "head_dim": 64, "mlp_width": 1024, "vocab_size": 1024, "window": 32,
             "states": 32, "dropout": 0.0}  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "unused", "segment": 64, "streams": streams * parallel.get("data", 1)},
            "parallel": {"micro_batch": 1, **parallel},
            "run": {"directory": "run", "steps": 10, "precision": precision},
        }
    )


@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        ({"data": 4}, "bf16"),
        ({"data": 4}, "fp32"),
        ({"zero_stage": 0}, "fp32"),
        ({"tensor": 2, "data": 2, "sequence_parallel": True}, "bf16"),
        ({"pipeline": 2, "data": 2, "stream_memory": "host"}, "bf16"),
    ],
)
def test_what_is_alive_when_the_update_begins_was_planned(parallel: dict[str, Any], precision: str) -> None:
    given = config(parallel, precision)
    with Live() as live, meta_world(given) as world, world.engine() as engine:
        alive = live.at_update(world, engine)
    needed = needed_by(given, 0)
    # of the memory in flight nothing is left when backward is done; buckets come and go
    most = needed.device + needed.host
    assert most - needed.buckets - needed.in_flight <= alive * 1.01 and alive <= most * 1.01


def test_a_model_of_7_billion_with_1024_streams_is_planned_whole() -> None:
    """32 layers of width 4096, one of them recurrent, and 131,072 tokens: 7.12 billion parameters.

    On each of 8 ranks, in GB (10^9 bytes), with 128 streams in micro-batches of one:

        weights      2 bytes a parameter                                        14.2
        optimizer    (4 of master weights + 8 of AdamW) / 8                     10.7
        gradients    4 of their sums over micro-batches, whole                  28.5
        buckets      50 million elements of 4 bytes                              0.2
        memory       32 caches of 2 x 512 x 4096 x 2 bytes = 268 MB a stream,
                     and a state of 512 x 4096 x 4 = 8.4 MB: 277 MB x 128       35.4, twice: committed and pending

    That is 124.5.  Version 0.1.0 also kept the bf16 gradients of a micro-batch, 2 bytes a parameter: 138.5 without the
    buckets, where its plan said 60: weights, optimizer and one slot.  With both slots in host memory it is 54.4,
    three micro-batches of 0.28 included.
    """
    seven = {"layers": 32, "width": 4096, "heads": 32, "head_dim": 128, "mlp_width": 16384, "vocab_size": 131072,
             "window": 512, "states": 512}  # fmt: skip
    on_device = needed_by(config({"data": 8}, streams=128, **seven), 0)
    parts = (on_device.weights, on_device.optimizer, on_device.gradients, on_device.carried, on_device.pending)
    assert [round(part / GB, 1) for part in parts] == [14.2, 10.7, 28.5, 35.4, 35.4]
    assert (round(on_device.device / GB, 1), on_device.host) == (124.5, 0)
    assert round((on_device.weights + on_device.optimizer + on_device.carried) / GB) == 60
    before = on_device.device - on_device.buckets + on_device.weights
    assert round(before / GB, 1) == 138.5

    on_host = needed_by(config({"data": 8, "stream_memory": "host"}, streams=128, **seven), 0)
    assert (round(on_host.device / GB, 1), round(on_host.host / GB, 1)) == (54.4, 70.9)
    assert on_host.device == on_device.device - on_host.host + on_host.in_flight


def test_memory_on_the_device_does_not_grow_with_the_streams_if_it_is_kept_on_the_host() -> None:
    few, many = (needed_by(config({"stream_memory": "host"}, streams=streams), 0) for streams in (8, 800))
    assert few.device == many.device and many.host == 100 * few.host
