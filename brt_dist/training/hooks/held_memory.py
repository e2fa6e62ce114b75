"""Reports what a rank holds in memory, to compare with the plan."""

from brt_dist.events import HeldEvent
from brt_dist.parallel.engine import Engine
from brt_dist.training.held import held
from brt_dist.training.hooks.base import Hook, Tell
from brt_dist.training.trainer_state import TrainedStep


class HeldMemory(Hook):
    """Measures once, after the first update, which allocates the optimizer's state.  Stateless."""

    def __init__(self, engine: Engine, tell: Tell) -> None:
        self._engine, self._tell = engine, tell

    def after_step(self, step: TrainedStep) -> None:
        if step.is_first:
            self._tell(HeldEvent(step=step.number, **held(self._engine).to_json()))
