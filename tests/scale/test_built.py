"""Ranks of layouts of any size, built without memory: against the plan, the engine that trains, and by hand."""

from collections.abc import Iterator
from typing import Any

import pytest

from brt_dist.config.halves import Matrix
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.model.mixers.window import WindowMixer
from brt_dist.planning.built import BuiltRank, built_ranks, total_parameters
from brt_dist.planning.memory import held_by, needed_by, plan_of
from tests.scale.meta import meta_world
from tests.scale.settings import small
from tests.scale.test_recipes import GB, GPU, ROOM, VOCABULARY, recipe

LAYERS, WIDTH = 128, 25600


@pytest.fixture(scope="module")
def trillion() -> Config:
    return recipe("scale_1t")


@pytest.fixture(scope="module")
def ranks(trillion: Config) -> list[BuiltRank]:
    return built_ranks(trillion)


def test_the_recipe_of_a_trillion_breaks_no_rule_and_fits(trillion: Config) -> None:
    check(trillion)
    assert trillion.parallel.world_size == 3072 == 8 * trillion.launch.nodes
    assert round(plan_of(trillion).parameters / 1e12, 2) == 1.02
    for stage in range(trillion.parallel.pipeline):
        needed = needed_by(trillion, stage)
        assert needed.device <= GPU - ROOM and 8 * needed.host <= 512 * GB


def test_each_kind_of_rank_of_a_trillion_is_built_and_has_what_is_planned(
    trillion: Config, ranks: list[BuiltRank]
) -> None:
    assert sorted(stage for rank in ranks for stage in rank.stages if rank.tensor_rank == 0) == list(range(64))
    for rank in ranks:
        for stage in rank.stages:
            assert rank.parameters == held_by(trillion, stage).parameters
        assert rank.layers == tuple(stage_layers(trillion)[rank.stage])
    # 12 D^2 for a layer, and more for each of the two recurrent ones; two copies of the embedding
    least = 12 * LAYERS * WIDTH**2 + 2 * VOCABULARY * WIDTH
    assert least < total_parameters(ranks, trillion) < 1.02 * least


def test_stages_of_a_trillion_are_as_balanced_as_two_layers_each_can_be(ranks: list[BuiltRank]) -> None:
    shares = {stage: rank.work for rank in ranks for stage in rank.stages}
    assert sum(shares.values()) == pytest.approx(64)
    heaviest = sorted(shares, key=lambda stage: shares[stage])[-3:]
    assert set(heaviest) == {31, 55, 63}  # the recurrent layers, and the logits
    assert max(shares.values()) < 1.35


def test_a_trillion_on_one_rank_has_as_many_parameters_as_the_plan_says(trillion: Config) -> None:
    alone = trillion.model_copy(update={"parallel": type(trillion.parallel)()})
    (rank,) = built_ranks(alone)
    assert rank.parameters == plan_of(trillion).parameters == plan_of(alone).parameters


@pytest.mark.parametrize("stage", [0, 31, 40, 63])
def test_a_built_rank_has_the_shapes_of_the_engine_that_trains(
    trillion: Config, ranks: list[BuiltRank], stage: int
) -> None:
    parallel = trillion.parallel
    built = next(rank for rank in ranks if stage in rank.stages and rank.tensor_rank == 7)
    with meta_world(trillion, rank=stage * parallel.tensor * parallel.data + 7) as world, world.engine() as engine:
        assert (world.layout.stage, world.layout.tensor_rank) == (stage, 7)
        shapes = [tuple(p.local.shape) for p in engine.parameters]
    assert list(built.shapes.values()) == shapes


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tensor": 4},
        {"tensor": 2, "pipeline": 3, "data": 2, "sequence_parallel": True},
        {"stage_layers": [3, 2], "pipeline": 2},
    ],
)
def test_small_layouts_too(parallel: dict[str, Any]) -> None:
    config = small(parallel, layers=5)
    for built in built_ranks(config):
        first = built.stage * config.parallel.tensor * config.parallel.data
        with meta_world(config, rank=first + built.tensor_rank) as world, world.engine() as engine:
            assert {p.name: tuple(p.local.shape) for p in engine.parameters} == built.shapes


def test_a_wrong_declaration_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = WindowMixer.parameters

    def too_many(self: WindowMixer, model: Any) -> Iterator[Matrix]:
        yield from declared(self, model)
        yield Matrix(1)

    monkeypatch.setattr(WindowMixer, "parameters", too_many)
    with pytest.raises(ConfigError, match=r"stage 0: [\d,]+ parameters were built, but [\d,]+ are planned"):
        built_ranks(small())


@pytest.mark.parametrize("size", ["heads", "ffn.width"])
def test_layers_refuse_what_cannot_be_split(size: str) -> None:
    config = small({"tensor": 3 if size == "heads" else 4})
    if size == "ffn.width":
        ffns = {name: ffn.model_copy(update={"width": 66}) for name, ffn in config.model.ffns.items()}
        config = config.model_copy(update={"model": config.model.model_copy(update={"ffns": ffns})})
    with pytest.raises(ConfigError, match=f"{size}=[0-9]+ cannot be split over parallel.tensor=[34] ranks"):
        built_ranks(config)


def test_a_process_of_a_run_builds_no_other_ranks() -> None:
    with meta_world(small()), pytest.raises(PlatformError, match="nearest: a separate process"):
        built_ranks(small())
