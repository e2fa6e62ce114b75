"""Reports how long the parts of a rank's start took, once the first step is done."""

from brt_dist.events import StartEvent
from brt_dist.starting import Starting
from brt_dist.training.hooks.base import Hook, Tell
from brt_dist.training.trainer_state import TrainedStep, TrainerState


class StartTimes(Hook):
    """Keeps the start of this attempt; the next one has its own."""

    def __init__(self, starting: Starting, tell: Tell) -> None:
        self._starting, self._tell = starting, tell

    def on_start(self, state: TrainerState) -> None:
        self._starting.begin("first step")

    def after_step(self, step: TrainedStep) -> None:
        if step.is_first:
            self._tell(StartEvent(step=step.number, seconds=self._starting.end()))
