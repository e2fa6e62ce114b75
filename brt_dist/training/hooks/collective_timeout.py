"""How long a rank waits for the others in a collective."""

from brt_dist.parallel.layout import limit_waiting
from brt_dist.training.hooks.base import Hook
from brt_dist.training.progress import TrainedStep


class CollectiveTimeout(Hook):
    """Sets the limit of training once the first step is done; until then that of the start holds.  Keeps nothing.

    A start takes longer, as kernels are compiled and checkpoints are read.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def after_step(self, step: TrainedStep) -> None:
        if step.is_first:
            limit_waiting(self._seconds)
