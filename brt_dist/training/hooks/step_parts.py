"""Reports where the time of a step goes, to compare with the plan."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from brt_dist.events import PartsEvent
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.waiting import StepTimer
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.trainer_state import TrainedStep

_APART = 10  # measured steps are at least this many steps apart, so that measuring costs little


class StepParts(Hook):
    """Measures logged steps on rank 0, and never the first, which compiles.  Comes after `StepMetrics`.

    `StepMetrics` has waited for the device by then, so nothing waits here.  Keeps the next step to measure.
    """

    def __init__(self, engine: Engine, tell: Tell) -> None:
        self._engine, self._tell, self._run = engine, tell, engine.config.run
        self._next: int | None = None  # step to measure, or a later one
        self._timer: StepTimer | None = None  # of the current step

    def around_step(self, number: int) -> AbstractContextManager[None]:
        if self._next is None or number < self._next or not is_due(number, self._run.log_every, last=self._run.steps):
            return nullcontext()
        self._next = number + _APART
        return self._measured()

    def after_step(self, step: TrainedStep) -> None:
        timer, self._timer = self._timer, None
        if step.is_first and self._engine.layout.rank == 0:
            self._next = step.number + 1
        if timer is None or not step.result.is_finite:
            return
        parts = {**timer.parts(), "data": step.waited}
        parts["other"] = time.perf_counter() - step.began - sum(parts.values())
        self._tell(PartsEvent(step=step.number, seconds={name: max(took, 0.0) for name, took in parts.items()}))

    @contextmanager
    def _measured(self) -> Iterator[None]:
        with self._engine.timed() as self._timer:
            yield
