"""Seconds of stages by the roofline: against FLOPs of the plan, data sheets and hand calculations."""

from dataclasses import replace
from pathlib import Path

import pytest

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.memory import held_by
from brt_dist.planning.simulator.machine import Machine, machine
from brt_dist.planning.simulator.roofline import Axes, StageWork, stage_seconds
from brt_dist.planning.simulator.work import axes_of, stage_work
from tests.scale.settings import small

MACHINE = Machine(peak=1e15, memory=1e12, inside=100e9, network=10e9, efficiency=0.5, link_efficiency=1.0, latency=0.0)
NOTHING = StageWork(0.0, 0.0, 0.0)
EXAMPLES = Path(__file__).parents[3] / "examples"


def recipe(name: str) -> Config:
    return load(EXAMPLES / f"{name}.yaml", ["model.vocab_size=131072", "data.dataset=data/train"]).config


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "pipeline": 2, "data": 2}, {"pipeline": 4}])
def test_stages_together_compute_what_the_model_has(parallel: dict[str, int]) -> None:
    config = small({"recompute": "layer", **parallel})
    works = [stage_work(config, stage) for stage in range(config.parallel.pipeline)]
    total = sum(work.flops for work in works) * config.parallel.tensor
    tokens = config.data.segment * config.parallel.micro_batch
    assert total == pytest.approx(tokens * forward_flops(config.model, executed=True))
    logits = tokens * 2 * config.model.width * 64
    assert sum(work.recomputed for work in works) * config.parallel.tensor == pytest.approx(total - logits)


def test_gradients_that_are_reduced_are_those_that_the_plan_counts() -> None:
    config = recipe("scale_70b")
    for stage in (0, 3, 7):
        held, work = held_by(config, stage), stage_work(config, stage)
        assert work.reduced == 4 * held.parameters * 7 / 8
        assert work.gathered == 2 * held.parameters * 7 / 8


def test_a_stage_takes_what_paper_and_pencil_say() -> None:
    work = replace(NOTHING, flops=5e12, recomputed=5e12, traffic=1e9, traffic_again=1e9, summed=4e8, summed_back=8e8)
    got = stage_seconds(work, Axes(tensor=4, data=1, pipeline=1), MACHINE)
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
    got = stage_seconds(replace(NOTHING, reduced=1e9, late=1e9, gathered=2e9, updated=1e12), axes, MACHINE)
    assert got.reduce == pytest.approx(1e9 / bandwidth)
    assert got.update == pytest.approx(1.0 + 2e9 / bandwidth)


def test_a_reduction_hides_behind_the_last_backward_but_for_its_last_bucket() -> None:
    axes = Axes(tensor=8, data=2, pipeline=1)
    work = replace(NOTHING, flops=5e13, reduced=3e9, late=1e8)  # backward takes 0.2 s, 2.9 GB take 0.29
    assert stage_seconds(work, axes, MACHINE).reduce == pytest.approx(0.01 + 0.09)
    assert stage_seconds(replace(work, flops=1e14), axes, MACHINE).reduce == pytest.approx(0.01)


def test_hidden_states_cross_nodes_unless_all_ranks_are_on_one() -> None:
    work = replace(NOTHING, sent=1e9)
    assert stage_seconds(work, Axes(2, 2, 2), MACHINE).send == pytest.approx(0.01)
    assert stage_seconds(work, Axes(4, 2, 2), MACHINE).send == pytest.approx(0.1)


def test_what_is_sent_and_summed_follows_from_the_layout() -> None:
    whole, split = (
        stage_work(small({"tensor": 2, "pipeline": 2, "sequence_parallel": given}), 0) for given in (False, True)
    )
    hidden = 32 * 32 * 2  # tokens, width, bytes
    assert (whole.sent, split.sent) == (hidden, hidden / 2)
    assert split.traffic < whole.traffic and split.summed == whole.summed < split.summed_back
    alone = stage_work(small(), 0)
    assert (alone.summed, alone.reduced, alone.gathered, alone.tied) == (0.0, 0.0, 0.0, 0.0)


def test_zero_3_fetches_weights_in_both_directions() -> None:
    config = small({"data": 2, "zero_stage": 3})
    work = stage_work(config, 0)
    assert work.fetched == pytest.approx(2 * held_by(config, 0).parameters / 2)
    slow = replace(MACHINE, inside=1.0, network=1.0)
    got = stage_seconds(work, axes_of(config), slow)
    assert got.forward == got.backward == pytest.approx(work.fetched)


def test_devices_have_the_peak_of_their_data_sheet() -> None:
    assert machine("h100").peak == 989e12 and machine("a100").network == 200e9 / 8
    assert machine("h100", 0.4).efficiency == 0.4
    with pytest.raises(ConfigError, match="device v100 is not known; nearest: a100, h100"):
        machine("v100")
