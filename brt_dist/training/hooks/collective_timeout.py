"""Sets the timeout of collectives."""

from brt_dist.parallel.layout import limit_waiting
from brt_dist.training.hooks.base import Hook
from brt_dist.training.trainer_state import TrainedStep


class CollectiveTimeout(Hook):
    """Sets the timeout for training after the first step.  Stateless.

    Until then the longer startup timeout applies, because kernels are compiled and checkpoints are read.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def after_step(self, step: TrainedStep) -> None:
        if step.is_first:
            limit_waiting(self._seconds)
