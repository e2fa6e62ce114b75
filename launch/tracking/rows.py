"""Turns events into rows for a tracking server, each sent once even if its step is repeated after a resume."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StepEvent,
    StragglerEvent,
    SystemEvent,
)
from launch.views.progress import layout_text


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


def rows(events: Iterable[Event], sent: dict[str, int]) -> Iterator[Row | Tag | TextFile]:
    """The rows of `events`.

    A step that was sent before is left out: after a resume it is repeated, and the server would keep both values.  Its
    loss goes to `attempt_N/loss` of the attempt that repeated it, since after a rollback it differs, and counts.

    Args:
        events: in order.
        sent: by curve, the last step that was sent; updated here.
    """
    for event in events:
        match event:
            case StepEvent():
                yield from _step(event, sent)
            case EvaluationEvent():
                curve = f"{event.dataset}/{event.memory}"
                yield from _once(curve, f"{curve}/", event, event.step, event.details(), sent)
                if event.layers:
                    yield from _once(f"{curve}/layers", "", event, event.step, _by_layer(event), sent)
            case CheckpointEvent():
                yield from _once("checkpoint", "checkpoint/", event, event.step, event.details(), sent)
                yield Tag("checkpoint", event.path or str(event.step))
            case SampleEvent():
                yield TextFile(f"samples/step_{event.step:08d}.txt", sample_text(event))
            case MemoryEvent():
                yield from _once("memory", "", event, event.step, _by_layer(event), sent)
            case (
                SkipEvent() | SpikeEvent() | StragglerEvent() | DivergedEvent() | DriftEvent() | IgnoredStateEvent()
            ) if event.step is not None:
                curve = f"guards/{event.kind}"
                yield from _once(curve, f"{curve}/", event, event.step, {**event.details(), "count": 1}, sent)
            case AttemptEvent():
                yield Tag("attempts", str(event.attempt))
                yield Tag("layout", layout_text(event.layout))


def system_rows(events: Iterable[SystemEvent], node: str, first: int) -> Iterator[Row]:
    """The rows of a node's system metrics, numbered from `first`, under the names that MLflow's UI expects."""
    for number, event in enumerate(events, first):
        yield from _rows(f"system/{node}/", event, number, event.values)


def sample_text(event: SampleEvent) -> str:
    """Samples as readable text."""
    return "\n".join(f"document {one.document}\n{one.prompt}\n>>> {one.text}\n" for one in event.samples)


def _step(event: StepEvent, sent: dict[str, int]) -> Iterator[Row]:
    if event.step > sent.get("step", -1):
        yield from _once("step", "", event, event.step, event.details(), sent)
    elif event.attempt is not None and event.loss is not None:
        again = f"attempt_{event.attempt}"
        yield from _once(again, f"{again}/", event, event.step, {"loss": event.loss}, sent)


def _once(
    curve: str, prefix: str, event: Event, step: int, values: Mapping[str, Any], sent: dict[str, int]
) -> Iterator[Row]:
    """The rows of an event, unless `curve` is already past its step."""
    if step <= sent.get(curve, -1):
        return
    sent[curve] = step
    yield from _rows(prefix, event, step, values)


def _rows(prefix: str, event: Event, step: int, values: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each value that is a number."""
    for name, value in values.items():
        if isinstance(value, int | float):
            yield Row(prefix + name, float(value), round(event.time * 1000), step)


def _by_layer(event: MemoryEvent | EvaluationEvent) -> dict[str, float]:
    return {
        f"memory/layer_{layer.layer}/{name}": value for layer in event.layers for name, value in layer.values.items()
    }
