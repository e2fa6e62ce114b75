"""Hooks of the training loop: they measure, report, evaluate, save, or end the run.

The trainer calls each method of all hooks in the order of its list, on every rank.  A hook whose method is collective
decides by what all ranks know (the step number, the config, a reduced result), never by a clock or by what only one
rank has seen.

The state of a hook belongs to one attempt and is not in checkpoints: a resumed run computes the same numbers without
it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from brt_dist.events import Event
from brt_dist.training.trainer_state import TrainedStep, TrainerState

Tell: TypeAlias = Callable[[Event], None]
"""Writes an event to the event log (on rank 0; other ranks write nothing)."""


class Hook:
    """Base class; its methods do nothing, and a hook overrides the ones that it needs."""

    def on_start(self, state: TrainerState) -> None:
        """Called when the attempt starts, after the engine has loaded its state."""

    def make_up(self, state: TrainerState) -> None:
        """Called before the first step of an attempt that resumes after a step whose evaluation was skipped."""

    def around_step(self, number: int) -> AbstractContextManager[Any]:
        """A context manager around forward, backward and update of step `number`."""
        return nullcontext()

    def after_step(self, step: TrainedStep) -> None:
        """Called after a trained step, but not after one that `adjustments.json` skips.

        Raises:
            DivergedError: the run must not continue from here; nothing of the step was saved.
        """

    def between_steps(self, state: TrainerState, is_last: bool) -> None:
        """Called after every step, trained or skipped, when the state may be evaluated and saved.

        Args:
            state: after the step.
            is_last: whether the attempt ends here, because the run is done or was asked to stop.
        """

    def on_end(self) -> None:
        """Called when the attempt ends normally; not after an error, when a collective might hang."""


def is_due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something that happens every `every` steps (0: never) is due at `step`; always at step `last`."""
    return step == last or (every > 0 and step % every == 0)
