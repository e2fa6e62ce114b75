"""Text that the model generates now and then, to be looked at."""

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.events import SampleEvent
from brt_dist.generation.prompts import samples
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.progress import Progress


class Samples(Hook):
    """Collective as often as an evaluation, if `run.sample_tokens` is set.  Keeps nothing between steps.

    Args:
        dataset: whose documents are continued.
    """

    def __init__(self, engine: Engine, dataset: Dataset | Mixture, tell: Tell, heartbeat: Heartbeat) -> None:
        self._engine, self._dataset, self._tell, self._heartbeat = engine, dataset, tell, heartbeat

    def between_steps(self, progress: Progress, is_last: bool) -> None:
        run = self._engine.config.run
        if run.sample_tokens and is_due(progress.step, run.evaluate_every, last=run.steps):
            self._heartbeat.slow("sampling")
            found = samples(self._engine, self._dataset, run.sample_tokens, progress.step)
            self._tell(SampleEvent(step=progress.step, samples=tuple(found)))
