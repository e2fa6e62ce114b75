"""What to do when an attempt has ended: stop, retry, or roll back to before a divergence.  Pure."""

from dataclasses import dataclass
from typing import Literal

from brt_dist.config.guards import RecoveryConfig
from brt_dist.errors import ExitCode
from brt_dist.training.adjustments import Adjustments
from launch.supervision.verdict import Verdict

_LONGEST_PAUSE_SECONDS = 60.0
# Failures that may not happen again.
_RETRIED = (ExitCode.INTERNAL, ExitCode.HUNG, ExitCode.LOST_NODE, ExitCode.ENVIRONMENT)
_WHY_NOT = {
    ExitCode.FINISHED: "the run is finished",
    ExitCode.PREEMPTED: "the run was stopped and saved",
    ExitCode.INTERRUPTED: "the run was stopped",
    ExitCode.OUT_OF_MEMORY: "another attempt would run out of memory too",
}


@dataclass(frozen=True)
class Decision:
    """What to do next.

    Attributes:
        action: `retry` and `rollback` start another attempt after `pause` seconds.
        adjustments: to save for the next attempt, if they changed.
    """

    action: Literal["stop", "retry", "rollback"]
    why: str
    pause: float = 0.0
    adjustments: Adjustments | None = None

    @property
    def told(self) -> str:
        """The decision to start another attempt, for the terminal."""
        if self.action == "retry":
            return f"retrying in {self.pause:g} s ({self.why})"
        return f"rolling back: {self.why}"

    def to_json(self) -> dict[str, str]:
        return {"action": self.action, "why": self.why}


class Recovery:
    """Decides what to do after each attempt of one `brt train`; remembers earlier failures.

    Args:
        saved: step of the newest checkpoint before the first attempt.
    """

    def __init__(self, config: RecoveryConfig, saved: int) -> None:
        self._config, self._saved = config, saved
        self._failures = 0  # since the last progress
        self._rollbacks = 0
        self._last: tuple[str, int] | None = None  # reason and step of the last failure

    def decide(self, verdict: Verdict, *, saved: int, step: int, adjustments: Adjustments) -> Decision:
        """Decide what to do after an attempt.

        Args:
            verdict: how it ended.
            saved: step of the newest checkpoint.
            step: the last step that was done.
            adjustments: those in force so far.
        """
        if saved > self._saved:
            self._saved, self._failures = saved, 0
        if verdict.exit_code == ExitCode.DIVERGED:
            at = verdict.failure.step if verdict.failure else None
            return self._after_divergence(at, saved, adjustments)
        if verdict.exit_code not in _RETRIED:
            return Decision("stop", _WHY_NOT.get(verdict.exit_code, "another attempt would fail the same way"))
        last, self._last = self._last, (verdict.reason, step)
        if verdict.exit_code == ExitCode.INTERNAL and last == self._last:
            return Decision("stop", f"the same error at the same step ({step}) as in the previous attempt")
        self._failures += 1
        if self._failures > self._config.retries:
            return Decision("stop", f"{self._failures} failures without a new checkpoint (launch.recovery.retries)")
        pause = min(self._config.pause_seconds * 2 ** (self._failures - 1), _LONGEST_PAUSE_SECONDS)
        left = self._config.retries - self._failures
        return Decision(
            "retry", f"{left} {'retry' if left == 1 else 'retries'} left; each checkpoint resets them", pause
        )

    def _after_divergence(self, at: int | None, saved: int, adjustments: Adjustments) -> Decision:
        config = self._config
        if config.diverged == "stop":
            return Decision("stop", "launch.recovery.diverged=stop")
        if at is None:
            return Decision("stop", "no rank reported the step at which it diverged")
        if self._rollbacks == config.rollbacks:
            return Decision("stop", f"rolled back {self._rollbacks} times already (launch.recovery.rollbacks)")
        self._rollbacks += 1
        if config.diverged == "skip":
            first = max(at - config.skip_steps + 1, saved + 1)
            what = f"step {at}" if first == at else f"steps {first} to {at}"
            return Decision(
                "rollback", f"resume after step {saved} and skip {what}", 0.0, adjustments.without(first, at)
            )
        lower = adjustments.slower(saved + 1, config.lower_factor)
        why = f"resume after step {saved} with the learning rate times {lower.rate_factor(saved + 1):g}"
        return Decision("rollback", why, 0.0, lower)
