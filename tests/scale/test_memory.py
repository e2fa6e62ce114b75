"""The plan of memory against what engines keep: every tensor that is alive when the update begins."""

from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.planning.activations import local_segment, table_gradient
from brt_dist.planning.memory import needed_by
from tests.scale.live import Live
from tests.scale.meta import meta_world

GB = 1e9
ON_HOST = {"offload_parameters": "cpu", "persistent_below": 0}


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
        ({"zero_stage": 0}, "fp32"),
        ({"tensor": 2, "data": 2, "sequence_parallel": True}, "bf16"),
        ({"pipeline": 2, "data": 2, "stream_memory": "host"}, "bf16"),
    ],
)
def test_what_is_alive_when_the_update_begins_was_planned(parallel: dict[str, Any], precision: str) -> None:
    given = config(parallel, precision)
    with Live() as live, meta_world(given) as world, world.engine() as engine:
        alive = live.in_step(world, engine, "update").all
    needed = needed_by(given, 0)
    # of the memory in flight nothing is left when backward is done; buckets come and go
    most = needed.device + needed.host
    assert most - needed.buckets - needed.in_flight <= alive * 1.01 and alive <= most * 1.01


@pytest.mark.parametrize(
    ("parallel", "precision", "when"),
    [
        ({"data": 4}, "fp32", "done"),
        ({"data": 4, "zero": {"overlap": True}}, "fp32", "done"),
        ({"data": 4, "zero": {"reduce_dtype": "bf16"}}, "bf16", "update"),
        ({"data": 4, "zero_stage": 2}, "bf16", "done"),
        ({"data": 4, "zero_stage": 2, "zero": {"overlap": True}}, "bf16", "done"),
        ({"data": 4, "zero_stage": 3}, "bf16", "backward"),
        ({"data": 4, "zero_stage": 3, "zero": {"reuse_distance": 2_000_000, "prefetch_bucket": 0}}, "bf16", "backward"),
        ({"data": 4, "zero_stage": 3, "zero": {"weights_within": 2}}, "bf16", "backward"),
        ({"data": 4, "zero_stage": 3, "zero": {**ON_HOST, "weights_within": 2}}, "bf16", "backward"),
        *(
            ({"data": 4, "zero_stage": stage, "zero": {"offload_optimizer": "cpu", **more}}, precision, when)
            for stage, when, more, precisions in (
                (1, "done", {}, ("bf16", "fp32")),
                (2, "done", {}, ("bf16", "fp32")),
                (3, "backward", {}, ("fp32",)),
                (3, "backward", {"offload_parameters": "cpu"}, ("bf16",)),
            )
            for precision in precisions
        ),
    ],
)
def test_buckets_and_what_is_offloaded_are_planned(parallel: dict[str, Any], precision: str, when: str) -> None:
    """When most memory is in use; the little that the forward pass leaves for the backward pass is there as well."""
    zero: dict[str, Any] = {"reduce_bucket": 10_000_000, **parallel.get("zero", {})}
    given = config({**parallel, "zero": zero, "recompute": True}, precision, streams=2)
    with Live() as live, meta_world(given) as world, world.engine() as engine:
        alive = live.in_step(world, engine, when)
    needed = needed_by(given, 0)
    comes_later = 4 * needed.parameters / 4 if precision == "fp32" and when == "done" and not needed.host else 0
    # a tile has this vocabulary, so the forward pass has made the gradient of the token embedding
    expected = needed.device + (table_gradient(given.model, local_segment(given)) if when == "backward" else 0)
    assert alive.device == pytest.approx(expected, rel=0.01, abs=comes_later)  # a copy of what a rank updates
    assert alive.host == pytest.approx(needed.host, rel=0.02, abs=1000)


def test_a_model_of_7_billion_with_1024_streams_is_planned_whole() -> None:
    """32 layers of width 4096, one of them recurrent, and 131,072 tokens: 7.12 billion parameters.

    On each of 8 ranks, in GB (10^9 bytes), with 128 streams in micro-batches of one:

        weights      2 bytes a parameter                                        14.2
        optimizer    (4 of master weights + 8 of AdamW) / 8                     10.7
        gradients    4 of their sums over micro-batches, whole                  28.5
        memory       32 caches of 2 x 512 x 4096 x 2 bytes = 268 MB a stream,
                     and a state of 512 x 4096 x 4 = 8.4 MB: 277 MB x 128       35.4, twice: committed and pending

    That is 124.3.  Version 0.1.0 also kept the bf16 gradients of a micro-batch, 2 bytes a parameter: 138.5, where its
    plan said 60: weights, optimizer and one slot.  With both slots in host memory it is 54.2, three micro-batches of
    0.28 included.
    """
    seven = {"layers": 32, "width": 4096, "heads": 32, "head_dim": 128, "mlp_width": 16384, "vocab_size": 131072,
             "window": 512, "states": 512}  # fmt: skip
    on_device = needed_by(config({"data": 8}, streams=128, **seven), 0)
    parts = (on_device.weights, on_device.optimizer, on_device.gradients, on_device.carried, on_device.pending)
    assert [round(part / GB, 1) for part in parts] == [14.2, 10.7, 28.5, 35.4, 35.4]
    assert (round(on_device.device / GB, 1), on_device.host) == (124.3, 0)
    assert round((on_device.weights + on_device.optimizer + on_device.carried) / GB) == 60
    before = on_device.device + on_device.weights
    assert round(before / GB, 1) == 138.5

    on_host = needed_by(config({"data": 8, "stream_memory": "host"}, streams=128, **seven), 0)
    assert (round(on_host.device / GB, 1), round(on_host.host / GB, 1)) == (54.2, 70.9)
    assert on_host.device == on_device.device - on_host.host + on_host.in_flight


def test_memory_on_the_device_does_not_grow_with_the_streams_if_it_is_kept_on_the_host() -> None:
    few, many = (needed_by(config({"stream_memory": "host"}, streams=streams), 0) for streams in (8, 800))
    assert few.device == many.device and many.host == 100 * few.host
