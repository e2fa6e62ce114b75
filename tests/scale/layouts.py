"""Random layouts of up to 64 ranks that the rules allow, and whether the calls of all their ranks match."""

import random
from collections.abc import Iterator
from typing import Any

from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from tests.scale.matching import first_mismatch
from tests.scale.settings import small
from tests.scale.whole import traces

RANKS = 64


def legal_layouts(seed: int, ranks: int = RANKS) -> Iterator[Config]:
    """Layouts without end, drawn at random."""
    generator = random.Random(seed)
    while True:
        config = _drawn(generator, ranks)
        if config is not None:
            yield config


def described(config: Config) -> str:
    """A layout in a line."""
    parallel, model = config.parallel, config.model
    words = [f"tensor {parallel.tensor}", f"pipeline {parallel.pipeline}", f"data {parallel.data}",
             f"zero {parallel.zero_stage}", config.run.precision, f"recompute {parallel.recompute}",
             f"{config.micro_batches} micro-batches", f"{model.layers} layers"]  # fmt: skip
    if parallel.sequence_parallel:
        words.append("sequence parallel")
    return ", ".join([*words, f"memory on {parallel.stream_memory}"])


def mismatch_of(config: Config, everyone: bool = False) -> str | None:
    """Run the calls of all ranks against each other; says what would hang, or None.

    Args:
        everyone: build every rank, and not only one of each kind.
    """
    made = traces(config, everyone=everyone)
    assert len(made) == config.parallel.world_size
    assert any(call.ranks > 1 for calls in made.values() for call in calls) or config.parallel.world_size == 1
    return first_mismatch(made)


def _drawn(generator: random.Random, ranks: int) -> Config | None:
    """None if the rules refuse it."""
    tensor, pipeline = generator.choice((1, 2, 4)), generator.choice((1, 1, 2, 3, 4, 8))
    if tensor * pipeline > ranks:
        return None
    micro_batches = generator.randint(1, 3)
    layout: dict[str, Any] = {
        "tensor": tensor,
        "pipeline": pipeline,
        "data": generator.randint(1, min(8, ranks // (tensor * pipeline))),
        "micro_batch": generator.choice((1, 2)),
        "zero_stage": generator.choice((0, 1, 1, 2, 3)),
        "sequence_parallel": tensor > 1 and generator.random() < 0.5,
        "recompute": generator.choice(("none", "attention", "layer")),
        "stream_memory": generator.choice(("device", "host")),
    }
    precision = generator.choice(("fp32", "bf16", "bf16"))
    config = small(
        layout,
        precision,
        {"name": "adamw", "warmup_steps": 0},
        micro_batches,
        layers=generator.randint(max(pipeline, 2), pipeline + 3),
        directory="unused/run",
    )
    try:
        check(config)
    except ConfigError:
        return None
    return config
