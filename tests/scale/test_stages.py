"""Every rank of a pipeline holds the layers that the config says."""

import pytest

from brt_dist.config.stages import stage_layers
from brt_dist.parallel.pipeline import layers_of
from tests.scale.settings import small
from tests.scale.world import fake_world


@pytest.mark.parametrize("given", [{}, {"stage_layers": [1, 1, 4, 2]}])
def test_a_stage_holds_its_layers_and_the_ends_what_belongs_to_them(given: dict[str, object]) -> None:
    config = small({"pipeline": 4, **given}, layers=8)
    for stage, layers in enumerate(stage_layers(config)):
        with fake_world(config, rank=stage) as world, world.engine() as engine:
            assert [layer.index for layer in layers_of(engine.stage)] == list(layers)
            ends = {name for name, _ in engine.stage.logical_modules() if not name.startswith("layers.")}
            assert ends == {0: {"embedding"}, 3: {"final_norm", "embedding"}}.get(stage, set())
