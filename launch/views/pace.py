"""How long the rest of a run takes.  Steps, evaluations and saves each have a pace of their own: the mean of the last
ones, times how many are still due.
"""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from brt_dist.events import AttemptEvent, CheckpointEvent, EvaluationEvent, Event, SampleEvent, StepEvent

if TYPE_CHECKING:
    from brt_dist.config.schema import RunConfig

_STEPS = 50  # step events whose mean counts
_PAUSES = 5  # evaluations or saves whose mean counts


class Pace:
    """Learns from the events of a run.

    Args:
        run: how many steps there are, and when an evaluation or a save is due.
    """

    def __init__(self, run: "RunConfig") -> None:
        self._run = run
        self._last: StepEvent | AttemptEvent | None = None  # what the next step event is measured from
        self._stretches: deque[tuple[int, int, float]] = deque(maxlen=_STEPS)  # first and last step, seconds in all
        self._first: tuple[int, int, float] | None = None  # of the attempt; compiles and warms up
        self._evaluations: dict[int, tuple[float, float]] = {}  # by step: when it began and ended
        self._saves: dict[int, tuple[float, float]] = {}  # by step: seconds that training waited, and in all

    def add(self, events: Iterable[Event]) -> None:
        """Take new events, in their order."""
        for event in events:
            match event:
                case AttemptEvent():
                    self._begin(event)
                case StepEvent():
                    self._step(event)
                case EvaluationEvent() | SampleEvent():
                    seconds = (event.seconds or 0.0) if isinstance(event, EvaluationEvent) else 0.0
                    began, _ = self._evaluations.get(event.step, (event.time - seconds, 0.0))
                    self._evaluations[event.step] = began, max(event.time, began)
                case CheckpointEvent():
                    self._saves[event.step] = event.stall_seconds or 0.0, event.seconds or 0.0

    def seconds_left(self) -> float | None:
        """Seconds to the end of the run, evaluations and saves included as far as there have been any.

        Returns:
            None before the first step of an attempt.
        """
        stretches = list(self._stretches) or ([self._first] if self._first else [])
        if not stretches or not isinstance(self._last, StepEvent):
            return None
        steps, done = self._run.steps, max([self._last.step, *self._evaluations])
        trained = sum(last - first + 1 for first, last, _ in stretches)
        seconds = sum(max(seconds - self._paused(first, last), 0.0) for first, last, seconds in stretches)
        left = max(steps - done, 0) * seconds / trained
        left += self._due(done, self._run.evaluate_every) * _mean([end - begin for begin, end in self._recent()])
        saves = [self._saves[step] for step in sorted(self._saves)[-_PAUSES:]]
        left += self._due(done, self._run.checkpoint_every) * _mean([stall for stall, _ in saves])
        if steps not in self._saves:  # the last one is waited for
            left += _mean([whole - stall for stall, whole in saves])
        return left + self._under_way(done)

    def _begin(self, event: AttemptEvent) -> None:
        self._last, self._first = event, None
        self._stretches.clear()
        for known in (self._evaluations, self._saves):  # later steps are done again
            for step in [step for step in known if step > event.start_step]:
                del known[step]

    def _step(self, event: StepEvent) -> None:
        if self._last is not None:
            is_first = isinstance(self._last, AttemptEvent)
            begin = self._last.start_step if isinstance(self._last, AttemptEvent) else self._last.step
            stretch = (begin + 1, event.step, event.time - self._last.time)
            if event.step > begin and is_first:
                self._first = stretch
            elif event.step > begin:
                self._stretches.append(stretch)
        self._last = event

    def _paused(self, first: int, last: int) -> float:
        """Seconds of steps `first` to `last` that were evaluations and saves: those after steps before the last."""
        steps = range(first - 1, last)
        evaluated = sum(end - begin for step, (begin, end) in self._evaluations.items() if step in steps)
        return evaluated + sum(stall for step, (stall, _) in self._saves.items() if step in steps)

    def _recent(self) -> list[tuple[float, float]]:
        """The last evaluations; the newest one only if it cannot still be in progress."""
        done = sorted(step for step in self._evaluations if self._last is None or step < self._last_step)
        return [self._evaluations[step] for step in done[-_PAUSES:] or sorted(self._evaluations)[-1:]]

    def _under_way(self, done: int) -> float:
        """What remains of the evaluation that is due after step `done`."""
        every, steps = self._run.evaluate_every, self._run.steps
        if not (done == steps or (every and done % every == 0)):
            return 0.0
        begin, end = self._evaluations.get(done, (0.0, 0.0))
        return max(_mean([end - begin for begin, end in self._recent()]) - (end - begin), 0.0)

    @property
    def _last_step(self) -> int:
        return self._last.step if isinstance(self._last, StepEvent) else 0

    def _due(self, done: int, every: int) -> int:
        """How many times after step `done` something happens that happens every `every` steps and after the last."""
        steps = self._run.steps
        if done >= steps:
            return 0
        return (steps - 1) // every - done // every + 1 if every else 1


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
