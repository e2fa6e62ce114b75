"""Loss on the training and validation data, with memory carried and with memory cleared."""

import time
from collections.abc import Mapping
from dataclasses import asdict

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.evaluation.evaluate import EvaluationResult, evaluate
from brt_dist.evaluation.forgetting import MemoryUse, parts_to_clear
from brt_dist.evaluation.layer_tally import watched_by
from brt_dist.events import EvaluationEvent
from brt_dist.parallel.engine import Engine
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.hooks.state_guard import StateGuard, worth_of_state
from brt_dist.training.stopping import StopFlag, Stopped, leave_if_asked
from brt_dist.training.trainer_state import TrainerState


class Evaluation(Hook):
    """Evaluates every `run.evaluate_every` steps and after the last one.  Collective then.

    The results go to `TrainerState.evaluations`, and so into the checkpoint of the same step.  The last dataset, the
    held-out one if there is one, shows what the parts of memory are worth, which the guard checks.

    Args:
        engine: to evaluate.
        datasets: by name.
        tell: writes an event.
        heartbeat: of this rank.
        stop: checked before each segment; the current evaluation is then skipped, and done on resume.
    """

    def __init__(
        self,
        engine: Engine,
        datasets: Mapping[str, Dataset | Mixture],
        tell: Tell,
        heartbeat: Heartbeat,
        stop: StopFlag,
    ) -> None:
        self._stop = stop
        self._engine, self._datasets, self._tell, self._heartbeat = engine, datasets, tell, heartbeat
        model, run = engine.config.model, engine.config.run
        self._parts = parts_to_clear(model) if run.evaluate_parts else []
        self._watches = run.memory_every > 0 and bool(watched_by(model))
        self._guard = StateGuard(run.guards, tell)

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        run = self._engine.config.run
        if is_due(state.step, run.evaluate_every, last=run.steps):
            self.make_up(state)

    def make_up(self, state: TrainerState) -> None:
        self._heartbeat.slow("evaluating")
        try:
            self._evaluate_all(state)
        except Stopped:
            state.left_out = True

    def _evaluate_all(self, state: TrainerState) -> None:
        run = self._engine.config.run
        for number, name in enumerate(self._datasets, 1):
            if number < len(self._datasets):
                self._evaluate(state, name, ["carried", "cleared"], watch=False)
                continue
            found = self._evaluate(state, name, ["carried", "cleared", *self._parts], watch=self._watches)
            bits = worth_of_state(self._engine.config.model, found)
            self._guard.check(state.step, state.step == run.steps, name, bits)

    def _evaluate(
        self, state: TrainerState, name: str, uses: list[MemoryUse], watch: bool
    ) -> dict[MemoryUse, EvaluationResult]:
        results = {}
        for use in uses:
            began, steps = time.perf_counter(), self._engine.config.run.evaluation_steps

            def between(number: int, what: str = f"{name}, memory {use}", steps: int = steps) -> None:
                leave_if_asked(self._stop, self._engine.device)
                self._heartbeat.part(f"{what}, segment {number} of at most {steps}")

            found = evaluate(self._engine, self._datasets[name], steps, use, watch and use == "carried", between)
            results[use] = found
            state.evaluations[f"{name}/{use}"] = found.bits_per_token
            self._tell(
                EvaluationEvent(
                    step=state.step,
                    dataset=name,
                    memory=use,
                    loss=found.loss,
                    bits_per_token=found.bits_per_token,
                    tokens=found.tokens,
                    positions=found.positions,
                    layers=found.layers,
                    accuracy=found.accuracy,
                    seconds=time.perf_counter() - began,
                    **(asdict(found.oracle) if found.oracle else {}),
                )
            )
        return results
