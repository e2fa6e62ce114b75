"""Saves checkpoints, and reports them when they are complete."""

from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.events import CheckpointEvent
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.trainer_state import TrainedStep, TrainerState


class Checkpoints(Hook):
    """Saves every `run.checkpoint_every` steps and at the end of the attempt.  Comes last.

    Training continues while a checkpoint is written, so it is reported after a later step.  Stateless: the store keeps
    track of the save in progress.
    """

    def __init__(self, store: CheckpointStore, engine: Engine, tell: Tell, heartbeat: Heartbeat) -> None:
        self._store, self._engine, self._tell, self._heartbeat = store, engine, tell, heartbeat
        self._every = engine.config.run.checkpoint_every

    def after_step(self, step: TrainedStep) -> None:
        self._tell_complete()

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        if is_last or is_due(state.step, self._every):
            self._heartbeat.slow("saving")
            cursor = state.cursor.to_json()
            self._store.save(state.step, state.tokens, cursor, state.evaluations, self._engine, state.left_out)
        self._tell_complete()

    def make_up(self, state: TrainerState) -> None:
        if not state.left_out:
            self._store.complete(state.step, state.evaluations)

    def on_end(self) -> None:
        self._heartbeat.slow("saving")
        self._store.wait()
        self._tell_complete()

    def _tell_complete(self) -> None:
        for saved in self._store.finished():
            self._tell(
                CheckpointEvent(
                    step=saved.step,
                    path=f"checkpoints/{saved.name}",
                    seconds=saved.seconds,
                    stall_seconds=saved.stall_seconds,
                    bytes=saved.bytes,
                )
            )
