"""Statistics of the memory that mixers carry; the same in every layout."""

from brt_dist.config.schema import ModelConfig
from brt_dist.evaluation.engine_reading import look_at_memory
from brt_dist.evaluation.layer_tally import LayerTally
from brt_dist.events import LayerStatistics
from brt_dist.parallel.engine import Engine


def has_statistics(model: ModelConfig) -> bool:
    """Whether a layer has a mixer that declares statistics."""
    return any(model.mixer_of(index).statistics for index in range(model.depth))


def memory_statistics(engine: Engine) -> tuple[LayerStatistics, ...]:
    """For each layer whose mixer declares statistics, their values over all streams, by name.  Collective."""
    model = engine.config.model
    tally = LayerTally({index: model.mixer_of(index).statistics for index in range(model.depth)}, engine.device.torch)
    look_at_memory(engine, engine.memory, tally)
    return tally.result()
