"""What looks at a run while it trains: it measures, tells, evaluates, saves, or ends the run.

The trainer calls each method of all hooks in the order of its list, on every rank alike.  A hook whose method is
collective decides by what all ranks know (the number of the step, the config, a result that was reduced), never by a
clock or by what one rank alone has seen.

What hooks remember is of one attempt and is not in checkpoints: a resumed run computes the same numbers without it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from brt_dist.events import Event
from brt_dist.training.progress import Progress, TrainedStep

Tell: TypeAlias = Callable[[Event], None]
"""Writes an event to the log of the run (rank 0; the other ranks write nothing)."""


class Hook:
    """Does nothing; a hook overrides what it needs."""

    def on_start(self, progress: Progress) -> None:
        """The attempt starts: the engine has the state of the newest checkpoint, or that of a new run."""

    def around_step(self, number: int) -> AbstractContextManager[Any]:
        """Entered just before forward and backward of step `number`, left just after its update."""
        return nullcontext()

    def after_step(self, step: TrainedStep) -> None:
        """A step was trained.  Not called after a step that `adjustments.json` leaves out.

        Raises:
            DivergedError: the run must not go on from here; nothing of the step was saved.
        """

    def between_steps(self, progress: Progress, is_last: bool) -> None:
        """A step is over, trained or left out, and nothing is under way: the state may be evaluated and saved.

        Args:
            is_last: the attempt ends here, as the run is done or was asked to stop.
        """

    def on_end(self) -> None:
        """The attempt ends in order.  Not called after an error, when other ranks may not come to a collective."""


def is_due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something done every so many steps (0: never) is done at `step`; always at step `last`."""
    return step == last or (every > 0 and step % every == 0)
