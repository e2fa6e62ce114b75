"""The history of a run, from its events: a later event of the same step wins."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from brt_dist.event_log import read_events
from brt_dist.events import AttemptEvent, CheckpointEvent, EndEvent, EvaluationEvent, Event, StartEvent, StepEvent


@dataclass
class History:
    """Events of a run, without those that a later attempt repeated.

    Attributes:
        attempt: the last one.
        end: the end of the last attempt, if it has ended.
        start: how long the parts of its start took, once its first step is done.
        steps, checkpoints: by step.
        evaluations: by (step, dataset, memory).
    """

    attempt: AttemptEvent | None = None
    end: EndEvent | None = None
    start: StartEvent | None = None
    steps: dict[int, StepEvent] = field(default_factory=dict)
    evaluations: dict[tuple[int, str, str], EvaluationEvent] = field(default_factory=dict)
    checkpoints: dict[int, CheckpointEvent] = field(default_factory=dict)

    @staticmethod
    def of(events: Iterable[Event]) -> "History":
        history = History()
        history.add(events)
        return history

    @staticmethod
    def read(run: Path) -> "History":
        """The history of a run directory so far."""
        return History.of(read_events(run))

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case AttemptEvent():
                    self._begin(event)
                case StartEvent():
                    self.start = event
                case EndEvent():
                    self.end = event
                case StepEvent():
                    self.steps[event.step] = event
                case EvaluationEvent():
                    self.evaluations[event.step, event.dataset, event.memory] = event
                case CheckpointEvent():
                    self.checkpoints[event.step] = event

    @property
    def last_step(self) -> int:
        """Number of the last step that was done."""
        return max(self.steps, default=0)

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint; 0 if there is none."""
        return max(self.checkpoints, default=0)

    @property
    def state(self) -> str | None:
        """`running`, or how the last attempt ended, by what rank 0 wrote; None before it wrote anything.

        For attempts without a launcher (torchrun): nothing notices if one is killed, so it counts as running.
        """
        if self.attempt is None:
            return None
        return (self.end.status if self.end else None) or "running"

    def latest_step(self) -> StepEvent | None:
        return self.steps[max(self.steps)] if self.steps else None

    def latest_checkpoint(self) -> CheckpointEvent | None:
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else None

    def _begin(self, event: AttemptEvent) -> None:
        """A new attempt resumes after `start_step`: later steps were lost and are repeated."""
        self.attempt, self.end, self.start = event, None, None
        start = event.start_step
        self.steps = {step: old for step, old in self.steps.items() if step <= start}
        self.evaluations = {key: old for key, old in self.evaluations.items() if key[0] <= start}
        self.checkpoints = {step: old for step, old in self.checkpoints.items() if step <= start}
