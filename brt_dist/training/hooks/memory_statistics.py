"""Reports statistics of the memory that layers carry."""

from brt_dist.events import MemoryEvent
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.memory_statistics import has_statistics, memory_statistics
from brt_dist.training.trainer_state import TrainedStep


class MemoryStatistics(Hook):
    """Measures every `run.memory_every` steps.  Collective then; stateless."""

    def __init__(self, engine: Engine, tell: Tell) -> None:
        self._engine, self._tell = engine, tell
        self._every = engine.config.run.memory_every if has_statistics(engine.config.model) else 0

    def after_step(self, step: TrainedStep) -> None:
        if is_due(step.number, self._every):
            self._tell(MemoryEvent(step=step.number, layers=memory_statistics(self._engine)))
