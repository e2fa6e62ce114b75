"""The plan of a layout: memory agrees with the accounting of ranks, time with what it is made of."""

import subprocess
import sys
from typing import Any

import pytest

from brt_dist.config.costs import bubble
from brt_dist.planning.data_traffic import data_calls
from brt_dist.planning.devices import DeviceSpec, device_spec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.memory import needed_by
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.stage_time import TILE_OPERATIONS, tiles
from tests.unit.planning.recipes import layout, recipe

H100 = device_spec("h100")
NO_LATENCY = {"link_seconds": 0.0, "hop_seconds": 0.0, "network_hop_seconds": 0.0}
LAYOUTS: list[dict[str, Any]] = [
    {"data": 64},
    {"tensor": 2, "data": 8, "micro_batch": 4, "sequence_parallel": True},
    {"tensor": 4, "pipeline": 4, "data": 2, "stream_memory": "host"},
    {"pipeline": 8, "data": 4, "micro_batch": 2, "recompute": "layer", "stream_memory": "host"},
    {"data": 16, "zero_stage": 2},
    {"data": 16, "zero_stage": 3, "recompute": "attention"},
]


def device(**changes: object) -> DeviceSpec:
    return H100.model_copy(update=changes)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_what_is_kept_is_what_the_accounting_of_ranks_says(sizes: dict[str, Any]) -> None:
    """The plan takes apart, and reuses for other layouts, what `needed_by` computes for each stage anew."""
    config, parallel = recipe("scale_7b"), layout(**sizes)
    for stage, memory in enumerate(Planner(config, H100).memory(parallel)):
        needed = needed_by(config.model_copy(update={"parallel": parallel}), stage)
        kept = memory.weights + memory.masters + memory.optimizer + memory.streams
        assert kept == needed.device - needed.gradients - needed.buckets and memory.host == needed.host


def test_activations_grow_with_micro_batches_in_flight() -> None:
    planner = Planner(recipe("scale_7b"), H100)
    first, *others = planner.memory(layout(pipeline=4, data=8, recompute="layer"))
    assert first.activations > 3.5 * others[-1].activations / 1.2  # four micro-batches against one
    less = planner.memory(layout(pipeline=4, data=8, recompute="layer", tensor=2, sequence_parallel=True))
    assert less[0].activations == pytest.approx(first.activations / 2, rel=0.01)
    kept = [planner.memory(layout(recompute=how))[0].activations for how in ("none", "attention", "layer")]
    assert kept[0] > 2 * kept[1] > 4 * kept[2]


def test_compute_is_flops_at_the_rate_of_the_device() -> None:
    """With infinitely fast memory, links and launches, only matrix products are left."""
    fast = {name: 1e30 for name in ("memory_rate", "link_rate", "network_rate", "host_rate")}
    nothing = {"launch_seconds": 0.0, **NO_LATENCY}
    ideal = device(matmul_efficiency=1.0, attention_efficiency=1.0, attention_forward=1 / 3, **nothing, **fast)
    planner = Planner(recipe("scale_7b"), ideal)
    plan = planner.plan(layout(tensor=2, data=32))
    assert plan.time.total == pytest.approx(plan.time.compute)
    assert 0.9 < plan.mfu < 1.0  # the logits are computed once more
    again = planner.plan(layout(tensor=2, data=32, recompute="layer"))
    assert again.time.compute / plan.time.compute == pytest.approx(4 / 3, rel=0.03)  # all but the logits
    assert planner.plan(layout(tensor=4, data=32)).time.compute == pytest.approx(plan.time.compute / 2)


def test_the_host_is_the_limit_where_a_device_is_fast() -> None:
    """Each layer and the logits have their operations; on a CPU they come on top."""
    config, parallel = recipe("scale_7b"), layout(data=64)
    slow = device(launch_seconds=1e-2)
    planner = Planner(config, slow)
    time = planner.plan(parallel).time
    operations = sum(planner.sizes.work(kind).operations for kind in planner.sizes.kinds)
    micro_batches = config.data.streams // 64
    per_micro_batch = (time.compute + time.launches) / micro_batches / 1e-2
    assert operations < per_micro_batch < 1.6 * operations
    added = Planner(config, device(launch_seconds=1e-2, is_asynchronous=False)).plan(parallel).time
    columns, tokens = config.model.vocab_size or 0, config.data.segment
    more = tiles(tokens, columns, is_cached=True) - tiles(tokens, columns, is_cached=False)  # of logits, on a CPU
    launches = time.compute + time.launches + micro_batches * more * TILE_OPERATIONS * 1e-2
    assert added.launches == pytest.approx(launches) and added.compute == time.compute


def test_stages_alike_have_the_bubble_of_1f1b() -> None:
    ideal = device(launch_seconds=0.0, network_rate=1e30, link_rate=1e30, **NO_LATENCY)
    config = recipe("scale_7b", "model.vocab_size=8")
    mixers = {"window": config.model.mixers["window"]}
    config = config.model_copy(update={"model": config.model.model_copy(update={"mixers": mixers})})
    plan = Planner(config, ideal).plan(layout(pipeline=8, data=8))
    working = plan.time.compute + plan.time.bubble
    assert plan.time.bubble / working == pytest.approx(bubble(8, 1024 // 8), rel=0.01)


def test_slower_links_cost_what_is_sent_over_them() -> None:
    config, parallel = recipe("scale_7b"), layout(tensor=8, data=8)
    fast, slow = (Planner(config, device(link_rate=rate, **NO_LATENCY)).plan(parallel).time for rate in (450e9, 225e9))
    assert slow.tensor >= 2 * fast.tensor > 0  # more where compute hides less of it
    assert slow.compute == fast.compute
    near = Planner(config, device(devices_per_node=64, **NO_LATENCY)).plan(parallel).time
    assert near.gather == pytest.approx(fast.gather * 50 / 450)  # data parallel ranks on other nodes use the network


def test_a_ring_has_the_network_of_its_devices_in_a_node() -> None:
    """An H100's node has 8 devices and adapters of 50 GB/s each, and NVLink of 450 GB/s a device."""
    assert H100.rate_of_ring(8) == H100.rate_of_ring(2, stride=4) == 450e9  # within a node
    assert H100.rate_of_ring(64) == 400e9  # one ring that leaves the node on all adapters
    assert H100.rate_of_ring(8, stride=2) == 200e9  # two rings share them
    assert H100.rate_of_ring(8, stride=8) == H100.rate_of_ring(2, stride=64) == 50e9
    assert device(network_rate=1e12).rate_of_ring(64) == 450e9  # it still passes through the node


def test_gradients_are_reduced_at_the_rate_of_their_ring() -> None:
    """The exposed sums of a step, by hand: 2(d-1)/d of the gradients, at 80 % of the rate."""
    config = recipe("scale_7b")
    for tensor, rate in ((1, 400e9), (4, 100e9), (8, 50e9)):
        planner, parallel = Planner(config, device(**NO_LATENCY)), layout(tensor=tensor, data=64, zero_stage=0)
        count = planner.sizes.held(parallel, 0).parameters
        expected = 2 * 2 * count * 63 / 64 / (0.8 * rate)  # bf16
        assert planner.plan(parallel).time.reduce == pytest.approx(expected)


def test_a_price_is_devices_times_hours() -> None:
    plan = Planner(recipe("scale_7b"), device(price=2.0)).plan(layout(tensor=2, data=32))
    assert plan.cost == pytest.approx(2.0 * 64 * 100_000 * plan.time.total / 3600)
    assert Planner(recipe("scale_7b"), device(price=None)).plan(layout(data=64)).cost is None


def test_it_says_what_does_not_fit() -> None:
    config = recipe("scale_70b")
    whole = Planner(config, H100).plan(layout(data=8))
    assert "on a device, most for" in str(whole.problem)
    split = {"tensor": 8, "pipeline": 8, "recompute": "layer"}
    on_host = Planner(config, device(host_memory=1e9)).plan(layout(**split, stream_memory="host"))
    assert "host memory" in str(on_host.problem)
    assert Planner(config, H100).plan(layout(**split, stream_memory="host")).problem is None


def test_a_plan_imports_no_torch() -> None:
    program = (
        "import sys;"
        "from brt_dist.planning.layout_plan import Planner;"
        "from brt_dist.planning.devices import device_spec;"
        "from tests.unit.planning.recipes import layout, recipe;"
        "Planner(recipe('scale_70b'), device_spec('h100')).plan(layout(tensor=8, pipeline=8, data=8)).to_json();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_bucket_of_many_ranks_waits_for_its_hops() -> None:
    """Of 512 data parallel ranks a gather takes 448 hops within nodes and 63 between them: 1.1 ms."""
    config, parallel = recipe("scale_7b"), layout(data=512)
    near = {"hop_seconds": 0.0, "network_hop_seconds": 0.0}
    with_hops, without = (Planner(config, one).plan(parallel).time for one in (H100, device(**near)))
    calls = data_calls(ModelSizes(config), parallel, 0).gather
    assert 2 * calls + 2 == 270  # as `python -m tests.scale` counts; two are sums of a number
    assert with_hops.gather - without.gather == pytest.approx(calls * (448 * 1.9e-6 + 63 * 4e-6))
    assert with_hops.reduce > without.reduce and with_hops.compute == without.compute
