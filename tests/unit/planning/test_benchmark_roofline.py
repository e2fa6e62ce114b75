"""The roofline of `benchmarks.published` by hand."""

from dataclasses import replace

import pytest

from benchmarks.roofline import Axes, StageWork, stage_seconds
from brt_dist.planning.devices import DeviceSpec, Peaks

DEVICE = DeviceSpec(
    name="of round numbers",
    peak_flops=Peaks(bf16=1e15, fp32=1e14),
    memory=80e9,
    memory_rate=1e12,
    link_rate=100e9,
    network_rate=10e9,
    host_rate=50e9,
    host_memory=1e12,
    devices_per_node=8,
    matmul_efficiency=0.5,
    link_efficiency=1.0,
)
NOTHING = StageWork(0.0, 0.0, 0.0)


def test_a_stage_takes_what_is_added_up_by_hand() -> None:
    work = replace(NOTHING, flops=5e12, recomputed=5e12, traffic=1e9, traffic_again=1e9, summed=4e8, summed_back=8e8)
    got = stage_seconds(work, Axes(tensor=4, data=1, pipeline=1), DEVICE)
    # 5e12 / (1e15 / 2) + 1e9 / 1e12; a sum moves 2 * 3/4 of 4e8 bytes at 100 GB/s
    assert got.forward == pytest.approx(0.010 + 0.001 + 0.006)
    assert got.backward == pytest.approx(2 * 0.011 + 0.011 + 0.012)
    assert (got.send, got.tied) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("axes", "bandwidth"),
    [
        (Axes(tensor=8, data=4, pipeline=1), 10e9),  # one GPU of each ring on a node
        (Axes(tensor=2, data=8, pipeline=1), 40e9),  # four, each with its network
        (Axes(tensor=1, data=16, pipeline=1), 80e9),
        (Axes(tensor=2, data=4, pipeline=1), 100e9),  # all on one node
    ],
)
def test_gradients_take_the_slowest_link_of_their_ring(axes: Axes, bandwidth: float) -> None:
    assert DEVICE.rate_of_ring(axes.data, axes.tensor) * DEVICE.link_efficiency == bandwidth
    got = stage_seconds(replace(NOTHING, reduced=1e9, late=1e9, gathered=2e9, updated=1e12), axes, DEVICE)
    assert got.reduce == pytest.approx(1e9 / bandwidth)
    assert got.update == pytest.approx(1.0 + 2e9 / bandwidth)


def test_a_reduction_hides_behind_the_last_backward_but_for_its_last_bucket() -> None:
    axes = Axes(tensor=8, data=2, pipeline=1)
    work = replace(NOTHING, flops=5e13, reduced=3e9, late=1e8)  # backward takes 0.2 s, 2.9 GB take 0.29
    assert stage_seconds(work, axes, DEVICE).reduce == pytest.approx(0.01 + 0.09)
    assert stage_seconds(replace(work, flops=1e14), axes, DEVICE).reduce == pytest.approx(0.01)


def test_hidden_states_cross_nodes_unless_all_ranks_are_on_one() -> None:
    work = replace(NOTHING, sent=1e9)
    assert stage_seconds(work, Axes(2, 2, 2), DEVICE).send == pytest.approx(0.01)
    assert stage_seconds(work, Axes(4, 2, 2), DEVICE).send == pytest.approx(0.1)
