"""Turns events into rows for a tracking server, each sent once even if its step is repeated after a resume."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from brt_dist.events import (
    AttemptEvent,
    CheckpointEvent,
    DivergedEvent,
    DriftEvent,
    EvaluationEvent,
    Event,
    IgnoredStateEvent,
    MemoryEvent,
    PartsEvent,
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StepEvent,
    StragglerEvent,
    SystemEvent,
)
from launch.tracking.names import CURRENT, METRICS, evaluated, metric
from launch.views.progress import layout_text

Carried = dict[str, tuple[int, float]]
Found = tuple[str, dict[str, Any], Any]  # a key of METRICS, the words in its name, the value


@dataclass(frozen=True)
class Row:
    """One value of a metric; `time` is that of the event, in milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Tag:
    """A fact about the run; the last value wins."""

    key: str
    value: str


@dataclass(frozen=True)
class TextFile:
    """A text file among the artifacts; the last one with the same name wins."""

    name: str
    text: str


@dataclass
class Rows:
    """Makes rows; remembers what was made.

    Args:
        sent: by curve, the last step that was sent.
        carried: by dataset, step and bits per token of its last evaluation with carried memory.
        names: version of the names of metrics.
    """

    sent: dict[str, int] = field(default_factory=dict)
    carried: Carried = field(default_factory=dict)
    names: int = CURRENT

    def of(self, events: Iterable[Event]) -> Iterator[Row | Tag | TextFile]:
        """The rows of `events`, which are in order.

        A step that was sent before is left out: after a resume it is repeated, and the server would keep both values.
        Its loss goes to a curve of the attempt that repeated it, since after a rollback it differs, and counts.
        """
        for event in events:
            match event:
                case StepEvent():
                    yield from self._step(event)
                case PartsEvent():
                    parts = [("parts", {"name": name}, value) for name, value in event.seconds.items()]
                    yield from self._once("parts", event, event.step, parts)
                case EvaluationEvent():
                    yield from self._evaluation(event)
                case CheckpointEvent():
                    yield from self._once("checkpoint", event, event.step, _named("checkpoint", event))
                    yield Tag("checkpoint", event.path or str(event.step))
                case SampleEvent():
                    yield TextFile(f"samples/step_{event.step:08d}.txt", sample_text(event))
                case MemoryEvent():
                    yield from self._once("memory", event, event.step, _by_layer(event))
                case (
                    SkipEvent() | SpikeEvent() | StragglerEvent() | DivergedEvent() | DriftEvent() | IgnoredStateEvent()
                ) if event.step is not None:
                    values = {**event.details(), "count": 1}
                    found = [("warning", {"kind": event.kind, "name": name}, value) for name, value in values.items()]
                    yield from self._once(f"guards/{event.kind}", event, event.step, found)
                case AttemptEvent():
                    yield Tag("attempts", str(event.attempt))
                    yield Tag("layout", layout_text(event.layout))

    def of_node(self, events: Iterable[SystemEvent], node: str, first: int) -> Iterator[Row]:
        """The rows of a node's system metrics, numbered from `first`, under the names that MLflow's UI expects."""
        for number, event in enumerate(events, first):
            found = [("node", {"node": node, "name": name}, value) for name, value in event.values.items()]
            yield from self._made(event, number, found)

    def _step(self, event: StepEvent) -> Iterator[Row]:
        if event.step > self.sent.get("step", -1):
            yield from self._once("step", event, event.step, _named("step", event))
        elif event.attempt is not None and event.loss is not None:
            again = [("step.loss_again", {"attempt": event.attempt}, event.loss)]
            yield from self._once(f"attempt_{event.attempt}", event, event.step, again)

    def _evaluation(self, event: EvaluationEvent) -> Iterator[Row]:
        words = {"dataset": event.dataset, "memory": event.memory, "data": evaluated(event.dataset, event.memory)}
        found = [(what, words, value) for what, _, value in _named("evaluation", event)]
        bits = event.bits_per_token
        if event.memory == "carried" and bits is not None:
            self.carried[event.dataset] = (event.step, bits)
        elif event.memory == "cleared" and bits is not None and event.dataset in self.carried:
            step, carried = self.carried[event.dataset]
            if step == event.step:
                of_carried = {**words, "data": evaluated(event.dataset, "carried")}
                found.append(("evaluation.gain", of_carried, bits - carried))
        curve = f"{event.dataset}/{event.memory}"
        yield from self._once(curve, event, event.step, found)
        if event.layers:
            yield from self._once(f"{curve}/layers", event, event.step, _by_layer(event))

    def _once(self, curve: str, event: Event, step: int, found: Iterable[Found]) -> Iterator[Row]:
        """The rows of an event, unless `curve` is already past its step."""
        if step > self.sent.get(curve, -1):
            self.sent[curve] = step
            yield from self._made(event, step, found)

    def _made(self, event: Event, step: int, found: Iterable[Found]) -> Iterator[Row]:
        """A row for each value that is a number and has a name."""
        for what, words, value in found:
            if isinstance(value, int | float) and (name := metric(what, self.names, **words)) is not None:
                yield Row(name, float(value), round(event.time * 1000), step)


def sample_text(event: SampleEvent) -> str:
    """Samples as readable text."""
    return "\n".join(f"document {one.document}\n{one.prompt}\n>>> {one.text}\n" for one in event.samples)


def _named(kind: str, event: Event) -> list[Found]:
    """The fields of an event that have a name."""
    return [(f"{kind}.{key}", {}, value) for key, value in event.details().items() if f"{kind}.{key}" in METRICS]


def _by_layer(event: MemoryEvent | EvaluationEvent) -> list[Found]:
    return [
        ("memory", {"layer": layer.layer, "name": name}, value)
        for layer in event.layers
        for name, value in layer.values.items()
    ]
