"""Scaling curves and goodput of configs."""

import pytest

from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.scaling import SIZES, curve, goodputs, saving_of, scaled, sizes_of, step_of
from brt_dist.planning.simulator.failure_rates import RATES, FailureRate
from brt_dist.planning.simulator.goodput import Saving
from tests.scale.settings import small
from tests.scale.test_recipes import recipe

H100 = device_spec("h100")


def test_sizes_are_8_to_16384_where_the_model_fits_into_them() -> None:
    assert sizes_of(small()) == list(SIZES) and (SIZES[0], SIZES[-1]) == (8, 16384)
    assert sizes_of(recipe("scale_70b")) == [64 * 2**doubled for doubled in range(9)]
    assert sizes_of(small({"tensor": 4, "pipeline": 3}))[:3] == [12, 24, 48]


def test_strong_scaling_divides_the_streams_and_weak_scaling_multiplies_them() -> None:
    config = recipe("scale_70b")  # 64 GPUs for each data parallel rank; it has 8 of them, with 128 streams each
    assert scaled(config, 32, "strong") is None and scaled(config, 96, "weak") is None
    strong, weak = scaled(config, 1024, "strong"), scaled(config, 1024, "weak")
    assert strong is not None and (strong.parallel.data, strong.data.streams, strong.micro_batches) == (16, 1024, 64)
    assert weak is not None and (weak.parallel.data, weak.data.streams, weak.micro_batches) == (16, 2048, 128)


def test_curves_stay_below_linear_and_strong_scaling_pays_the_bubble() -> None:
    config = recipe("scale_70b")
    # a host that is no limit: stages are cut by FLOPs, and one with a recurrent layer has more operations; and a
    # network without latency, which would be a part of a step on 16,384 GPUs
    device = H100.model_copy(update={"launch_seconds": 0.0, "network_hop_seconds": 0.0})
    strong, weak = (curve(config, device, kind, (64, 512, 4096, 16384)) for kind in ("strong", "weak"))
    assert [one.gpus for one in strong] == [one.gpus for one in weak] == [64, 512, 4096, 16384]
    for points in (strong, weak):
        shares = [one.efficiency for one in points]
        assert shares[0] == 1.0 and shares == sorted(shares, reverse=True)
        assert all(0 < one.mfu < H100.matmul_efficiency for one in points)
    # 16384 / 64 = 256 ranks with 4 micro-batches in 8 stages: 7 of 11 parts are bubble, and a little more
    assert strong[-1].bubble == pytest.approx(7 / 11, abs=0.08)
    assert weak[-1].bubble == pytest.approx(7 / (128 + 7), abs=0.08)


@pytest.mark.parametrize("streams", [64, 1024])
def test_a_simulated_step_takes_as_long_as_the_sum_of_its_parts_in_the_plan(streams: int) -> None:
    config = recipe("scale_70b")
    config = config.model_copy(update={"data": config.data.model_copy(update={"streams": streams})})
    planned = Planner(config, H100).plan(config.parallel).time.total
    assert step_of(config, H100).seconds == pytest.approx(planned, rel=0.03)


def test_goodput_falls_with_the_gpus_and_is_all_but_the_stall_without_failures() -> None:
    savings = [(gpus, Saving(5.0, 20.0, 300.0)) for gpus in SIZES]
    for rate in RATES.values():
        shares = [one.goodput.trained for one in goodputs(small(), rate, savings)]
        assert shares == sorted(shares, reverse=True) and shares[0] > 0.99
    (without,) = goodputs(small(), FailureRate(0.0, "none"), savings[:1])
    assert without.goodput.trained == pytest.approx(1 - 5 / (without.interval + 5))


def test_llama_3_is_met_with_what_its_report_says() -> None:
    """More than 90 % of the time trained, with 466 interruptions in 54 days: restarts took 10 minutes at most."""
    rate = FailureRate(466 / (54 * 24 * 16384), "all interruptions")
    for restart in (300.0, 600.0):
        (kept,) = goodputs(small(), rate, [(16384, Saving(5.0, 30.0, restart))])
        assert 0.90 < kept.goodput.trained < 0.97


def test_saves_take_as_long_as_the_bytes_of_a_checkpoint() -> None:
    saving = saving_of(recipe("scale_70b"), H100, 2e9, 300.0)
    # 70.6 billion weights with 12 bytes, and 1,409 GB of memory of streams (docs/scaling.md), of 512 ranks on 64 nodes
    assert saving.write == pytest.approx((847e9 + 1409e9) / 64 / 2e9, rel=0.02)
    assert saving.stall == pytest.approx((847e9 + 1409e9) / 512 / 64e9, rel=0.02)
