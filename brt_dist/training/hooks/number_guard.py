"""Detects a loss or gradient norm that is not finite, or unusually large."""

import statistics
from collections import deque

from brt_dist.config.guards import GuardsConfig
from brt_dist.errors import DivergedError
from brt_dist.events import DivergedEvent, SkipEvent, SpikeEvent
from brt_dist.parallel.engine import StepResult
from brt_dist.training.hooks.base import Hook, Tell
from brt_dist.training.trainer_state import TrainedStep

_FEWEST = 10  # steps before spikes are detected
_NOISE = 0.01  # smallest deviation that counts, relative to the median; matters when all steps are alike


class NumberGuard(Hook):
    """Checks loss and gradient norm of every step.  All ranks have agreed on these numbers, so they decide alike.

    Keeps the numbers of the last steps and the count of updates skipped in a row.  A resumed run starts without them:
    it may stop or detect a spike at a different step, but it computes the same numbers.

    Args:
        config: `run.guards`.
        tell: writes an event.
    """

    def __init__(self, config: GuardsConfig, tell: Tell) -> None:
        self._config, self._tell = config, tell
        self._usual = {name: deque[float](maxlen=config.spike_window or 1) for name in ("loss", "grad_norm")}
        self._skips = 0  # in a row

    def after_step(self, step: TrainedStep) -> None:
        self.check(step.result, step.number)

    def check(self, result: StepResult, step: int) -> None:
        """Check a finished step.

        Raises:
            DivergedError: the run has diverged; nothing of the step was saved.
        """
        if not result.is_finite:
            self._not_finite(result, step)
            return
        self._skips = 0
        for name, history in self._usual.items():
            value = getattr(result, name)
            if self._is_spike(history, value):
                median = statistics.median(history)
                numbers = {name: value, "median": median}
                self._tell(SpikeEvent(step=step, quantity=name, **numbers))
                if name == "loss" and self._config.on_spike == "stop":
                    usual = f"the median of the last {len(history)} steps was {median:.4g}"
                    self._end(f"step {step}: loss {value:.4g}; {usual}", result, step)
            history.append(value)

    def _not_finite(self, result: StepResult, step: int) -> None:
        self._skips += 1
        what = f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}"
        if self._config.nonfinite == "stop":
            self._end(what, result, step)
        if self._skips > self._config.most_skips:
            self._end(f"{what}; {self._skips} updates in a row were skipped", result, step)
        loss, grad_norm = str(result.loss), str(result.grad_norm)
        self._tell(SkipEvent(step=step, why="not finite", loss=loss, grad_norm=grad_norm))

    def _is_spike(self, history: deque[float], value: float) -> bool:
        if not self._config.spike_window or len(history) < min(_FEWEST, self._config.spike_window):
            return False
        median = statistics.median(history)
        deviation = statistics.median(abs(one - median) for one in history)
        return value > median + self._config.spike_deviations * max(deviation, _NOISE * abs(median))

    def _end(self, what: str, result: StepResult, step: int) -> None:
        self._tell(DivergedEvent(step=step, loss=str(result.loss), grad_norm=str(result.grad_norm)))
        raise DivergedError(
            f"{what}. The last checkpoint is untouched; resume from it with a smaller optimizer.learning_rate or "
            "optimizer.clip_norm or a longer warm-up, or set launch.recovery.diverged to recover automatically.",
            step,
        )
