"""Drawing initial weights: what each rank draws, that layouts agree, and that no rank holds a whole model for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from brt_dist.config.deepspeed import deepspeed_config
from brt_dist.config.schema import Config
from brt_dist.model import initial_values
from brt_dist.model.parameters import LogicalParameter
from brt_dist.parallel.engine import build_engine
from tests.scale.settings import small
from tests.scale.world import fake_world

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp4": {"tensor": 4},
    "dp4": {"data": 4},
    "dp3-zero2": {"data": 3, "zero_stage": 2},
    "tp2-dp3-zero3": {"tensor": 2, "data": 3, "zero_stage": 3},
    "tp2-pp2-dp2": {"tensor": 2, "pipeline": 2, "data": 2},
}


def given(layout: dict[str, Any]) -> Config:
    config = small(layout)
    # tensor parallel ranks split it unevenly
    return config.model_copy(update={"model": config.model.changed({"vocab_size": 53})})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many values were drawn, call by call."""
    counts: list[int] = []
    shares = initial_values.shares

    def counted(key: int, first: int, count: int) -> Any:
        counts.append(count)
        return shares(key, first, count)

    monkeypatch.setattr(initial_values, "shares", counted)
    return counts


def whole(config: Config) -> tuple[dict[str, Tensor], list[LogicalParameter]]:
    """The first weights of one process, and the parameters."""
    with fake_world(config.model_copy(update={"parallel": given({}).parallel})) as world, world.engine() as engine:
        return engine.weights(), engine.parameters


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_starts_with_the_same_weights_and_draws_each_once(layout: str, drawn: list[int]) -> None:
    config = given(LAYOUTS[layout])
    expected, parameters = whole(config)
    random = [parameter for parameter in parameters if parameter.initializer.is_random]
    assert sum(drawn) == sum(parameter.size for parameter in random)

    found = {name: torch.full_like(value, torch.nan) for name, value in expected.items()}
    counts = []
    for rank in range(config.parallel.world_size):
        drawn.clear()
        with fake_world(config, rank) as world, world.engine() as engine:
            for piece in engine.pieces():
                kind, _, name = piece.tensor.name.partition("/")
                if kind == "weights":
                    if name == "embedding.weight":
                        piece.region.put(found[name][: config.model.vocab_size], piece.values)
                    else:
                        piece.region.put(found[name], piece.values)
        counts.append(sum(drawn))
    found["embedding.weight"][config.model.vocab_size :] = 0
    for name, value in expected.items():
        assert torch.equal(found[name].to(value.dtype), value), name

    tensor = config.parallel.tensor
    once = sum(p.size * (1 if p.partition_dim is not None else tensor) for p in random)
    tied = expected["embedding.weight"][: config.model.vocab_size].numel() if config.parallel.pipeline > 1 else 0
    assert sum(counts) == once + tied  # the last stage has a copy of the table
    assert max(counts) < 1.5 * sum(counts) / len(counts)


def test_of_eight_tensor_parallel_ranks_each_draws_an_eighth(drawn: list[int]) -> None:
    config = small({"tensor": 8})
    config = config.model_copy(update={"model": config.model.changed({"heads": 8, "vocab_size": 64})})
    for rank in range(8):
        drawn.clear()
        with fake_world(config, rank) as world, world.engine() as engine:
            expected = sum(
                parameter.size // (8 if parameter.partition_dim is not None else 1)
                for parameter in engine.parameters
                if parameter.initializer.is_random
            )
        assert sum(drawn) == expected


@pytest.mark.parametrize("layout", [{"data": 2}, {"data": 2, "zero_stage": 3}, {"pipeline": 2}])
def test_nothing_is_drawn_for_an_engine_that_is_loaded(layout: dict[str, Any], drawn: list[int]) -> None:
    with fake_world(small(layout)) as world:
        engine = build_engine(world.config, world.layout, world.device, blank=True)
        engine.load(lambda tensor, region: torch.ones(region.size, dtype=tensor.dtype), 0)
        assert not drawn
        engine.draw()
        assert drawn
        engine.close()


class LiveBytes(TorchDispatchMode):
    """Sums up the storages that exist, whenever a new one is made.

    Args:
        ignored: sizes of storages that do not count.

    Attributes:
        peak: the largest sum, in bytes.
    """

    def __init__(self, ignored: tuple[int, ...]) -> None:
        super().__init__()
        self.peak, self._ignored = 0, ignored
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.device.type == "cpu":
                storage = value.untyped_storage()
                if storage.nbytes() not in (0, *self._ignored) and storage._cdata not in self._live:
                    self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self._live = {key: found for key, found in self._live.items() if not found[0].expired()}
                    self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def test_with_zero_3_no_rank_ever_holds_the_whole_model() -> None:
    """One layer at a time is whole, in fp32 and in bf16; of all others there is a 64th."""
    config = small({"data": 64, "zero_stage": 3}, layers=12)
    # matrices that DeepSpeed partitions: every rank keeps those below 100,000 elements
    sizes = {"width": 512, "heads": 8, "head_dim": 64, "ffns.relu.width": 2048, "mixers.recurrent.mlp_width": 2048}
    config = config.model_copy(update={"model": config.model.changed(sizes)})
    # DeepSpeed's bucket for gradients, whose size has nothing to do with the model
    bucket = deepspeed_config(config)["zero_optimization"].get("reduce_bucket_size", 500_000_000)
    with fake_world(config) as world, LiveBytes((2 * bucket, 4 * bucket)) as live:
        engine = build_engine(config, world.layout, world.device)
        engine.close()
    layers = [0] * config.model.layers
    for parameter in engine.parameters:
        if parameter.name.startswith("layers."):
            layers[int(parameter.name.split(".")[1])] += parameter.size
    shards = sum(layers) / 64 * (2 + 4 + 4 + 8)  # bf16, master values, gradients, AdamW
    assert live.peak < shards + (4 + 2) * max(layers) + 2**20
    assert live.peak < 2 * sum(layers)  # bytes of all weights in bf16
