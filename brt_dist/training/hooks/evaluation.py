"""Loss on the training and validation data, with memory carried and with memory cleared."""

import time
from collections.abc import Mapping

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.evaluation.evaluate import evaluate
from brt_dist.events import EvaluationEvent
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.trainer_state import TrainerState


class Evaluation(Hook):
    """Evaluates every `run.evaluate_every` steps and after the last one.  Collective then; stateless.

    The results go to `TrainerState.evaluations`, and so into the checkpoint of the same step.

    Args:
        engine: to evaluate.
        datasets: by name.
        tell: writes an event.
        heartbeat: of this rank.
    """

    def __init__(
        self, engine: Engine, datasets: Mapping[str, Dataset | Mixture], tell: Tell, heartbeat: Heartbeat
    ) -> None:
        self._engine, self._datasets, self._tell, self._heartbeat = engine, datasets, tell, heartbeat

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        run = self._engine.config.run
        if not is_due(state.step, run.evaluate_every, last=run.steps):
            return
        self._heartbeat.slow("evaluating")
        for name, dataset in self._datasets.items():
            for memory in ("carried", "cleared"):
                began = time.perf_counter()
                found = evaluate(self._engine, dataset, run.evaluation_steps, memory == "cleared")
                state.evaluations[f"{name}/{memory}"] = found.bits_per_token
                self._tell(
                    EvaluationEvent(
                        step=state.step,
                        dataset=name,
                        memory=memory,
                        loss=found.loss,
                        bits_per_token=found.bits_per_token,
                        tokens=found.tokens,
                        positions=found.positions,
                        seconds=time.perf_counter() - began,
                    )
                )
