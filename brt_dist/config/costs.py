"""Settings that work but cost more than necessary."""

from collections.abc import Iterator

from brt_dist.config.schema import Config

_MICRO_BATCHES_PER_STAGE = 4


def warnings(config: Config) -> Iterator[str]:
    """A message for each setting that works but costs more than necessary."""
    stages, micro_batches = config.parallel.pipeline, config.micro_batches
    if stages > 1 and micro_batches < _MICRO_BATCHES_PER_STAGE * stages:
        wanted = _MICRO_BATCHES_PER_STAGE * stages * config.parallel.data * config.parallel.micro_batch
        yield (
            f"{micro_batches} micro-batches per step in parallel.pipeline={stages} stages: each stage waits "
            f"{bubble(stages, micro_batches):.0%} of the time; {_MICRO_BATCHES_PER_STAGE} micro-batches per stage "
            f"(data.streams={wanted}, or fewer data parallel ranks) leave "
            f"{bubble(stages, _MICRO_BATCHES_PER_STAGE * stages):.0%}"
        )


def bubble(stages: int, micro_batches: int) -> float:
    """The share of a step for which a stage of a 1F1B pipeline is idle, if all stages take equally long."""
    return (stages - 1) / (micro_batches + stages - 1)
