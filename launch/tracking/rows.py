"""From events to the rows of a tracking server: what is sent, once, whatever was trained again after a resume."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.events import Event

_NO_METRICS = ("event", "time", "attempt", "step")


@dataclass(frozen=True)
class Row:
    """One value of a metric.  time: milliseconds since 1970, of the event."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Tag:
    """A fact about the run that the last one wins."""

    key: str
    value: str


def rows(events: Iterable[Event], sent: dict[str, int]) -> Iterator[Row | Tag]:
    """The rows of `events`.

    sent: by curve, the last step that was sent; brought up to date here.  A step at or before it is left out: after a
    resume it comes again, and the server would keep both.
    """
    for event in events:
        kind = event["event"]
        if kind == "step":
            yield from _once("step", "", event, sent)
        elif kind == "evaluation":
            curve = f"{event['dataset']}/{event['memory']}"
            yield from _once(curve, f"{curve}/", event, sent)
        elif kind == "checkpoint":
            yield from _once("checkpoint", "checkpoint/", event, sent)
            yield Tag("checkpoint", str(event.get("path", event["step"])))
        elif kind == "attempt":
            yield Tag("attempts", str(event.get("attempt")))
            yield Tag("layout", layout_text(event.get("layout", {})))


def layout_text(layout: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in layout.items())


def _once(curve: str, prefix: str, event: Event, sent: dict[str, int]) -> Iterator[Row]:
    step = int(event["step"])
    if step <= sent.get(curve, -1):
        return
    sent[curve] = step
    for name, value in event.items():
        if name not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool):
            yield Row(prefix + name, float(value), round(float(event.get("time", 0)) * 1000), step)
