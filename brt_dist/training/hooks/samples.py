"""Generates text samples during training."""

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.events import SampleEvent
from brt_dist.generation.prompts import samples
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.stopping import StopFlag, Stopped, leave_if_asked
from brt_dist.training.trainer_state import TrainerState


class Samples(Hook):
    """Generates samples with each evaluation, if `run.sample_tokens` is set.  Collective then; stateless.

    Args:
        engine: the model to sample from.
        dataset: source of the prompts, the beginnings of its documents.
        tell: writes an event.
        heartbeat: of this rank.
        stop: checked before each token; the samples are then skipped, and done on resume.
    """

    def __init__(
        self, engine: Engine, dataset: Dataset | Mixture, tell: Tell, heartbeat: Heartbeat, stop: StopFlag
    ) -> None:
        self._stop = stop
        self._engine, self._dataset, self._tell, self._heartbeat = engine, dataset, tell, heartbeat

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        run = self._engine.config.run
        if is_due(state.step, run.evaluate_every, last=run.steps):
            self.make_up(state)

    def make_up(self, state: TrainerState) -> None:
        tokens = self._engine.config.run.sample_tokens
        if not tokens:
            return
        self._heartbeat.slow("sampling")

        def between(number: int) -> None:
            leave_if_asked(self._stop, self._engine.device)
            self._heartbeat.part(f"token {number} of {tokens}")

        try:
            found = samples(self._engine, self._dataset, tokens, state.step, between)
        except Stopped:
            state.left_out = True
        else:
            self._tell(SampleEvent(step=state.step, samples=tuple(found)))
