"""Memory of a step as `benchmarks/step.py` runs it on a CPU: the most bytes of tensors at a time, counted."""

import gc

import pytest

from benchmarks.step import config
from brt_dist.config.schema import Config
from brt_dist.model import cross_entropy
from tests.scale.activations import Operations, Peak
from tests.scale.meta import meta_world


@pytest.mark.parametrize(("shape", "most"), [("tiny", 310e6), ("small", 520e6), ("medium", 1670e6)])
def test_the_peak_of_a_step(shape: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "TOKENS", cross_entropy.CACHED)  # as on a CPU
    with (
        meta_world(Config.model_validate(config("cpu", shape, "fixed:skip"))) as world,
        Peak(Operations()) as peak,
        world.engine() as engine,
    ):
        engine.train_step(world.inputs(1), 1e-3)
        gc.collect()
        peak.bytes = 0
        engine.train_step(world.inputs(2), 1e-3)
        assert 0.95 * most <= peak.bytes <= most, peak.bytes
