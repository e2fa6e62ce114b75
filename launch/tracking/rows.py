"""From events to the rows of a tracking server: what is sent, once, whatever was trained again after a resume."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.run.events import Event

_NO_METRICS = ("event", "time", "attempt", "step")
_GUARDS = ("skip", "spike", "straggler", "diverged")


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


@dataclass(frozen=True)
class Text:
    """A text file among the artifacts; the last one of a name wins."""

    name: str
    text: str


def rows(events: Iterable[Event], sent: dict[str, int]) -> Iterator[Row | Tag | Text]:
    """The rows of `events`.

    sent: by curve, the last step that was sent; brought up to date here.  A step at or before it is left out: after a
    resume it comes again, and the server would keep both.  The loss of such steps goes to `attempt_N/loss` of the
    attempt that trained them anew, as after a rollback it is another one, and the one that counts.
    """
    for event in events:
        kind = event["event"]
        if kind == "step":
            yield from _step(event, sent)
        elif kind == "evaluation":
            curve = f"{event['dataset']}/{event['memory']}"
            yield from _once(curve, f"{curve}/", event, sent)
        elif kind == "checkpoint":
            yield from _once("checkpoint", "checkpoint/", event, sent)
            yield Tag("checkpoint", str(event.get("path", event["step"])))
        elif kind == "sample":
            yield Text(f"samples/step_{int(event['step']):08d}.txt", sample_text(event))
        elif kind == "memory":
            yield from _once("memory", "", {**event, **_by_layer(event)}, sent)
        elif kind in _GUARDS and isinstance(event.get("step"), int):
            yield from _once(f"guards/{kind}", f"guards/{kind}/", {**event, "count": 1}, sent)
        elif kind == "attempt":
            yield Tag("attempts", str(event.get("attempt")))
            yield Tag("layout", layout_text(event.get("layout", {})))


def system_rows(events: Iterable[Event], node: str, first: int) -> Iterator[Row]:
    """The rows of samples of a node, numbered from `first` on, under the names that MLflow's page looks for."""
    for number, event in enumerate(events, first):
        yield from _values(f"system/{node}/", event, number)


def sample_text(event: Event) -> str:
    """Samples as a file for people."""
    return "\n".join(
        f"document {one['document']}\n{one['prompt']}\n>>> {one['text']}\n" for one in event.get("samples", ())
    )


def layout_text(layout: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in layout.items())


def _step(event: Event, sent: dict[str, int]) -> Iterator[Row]:
    step, attempt = int(event["step"]), event.get("attempt")
    if step > sent.get("step", -1):
        yield from _once("step", "", event, sent)
    elif attempt is not None and "loss" in event:
        again = f"attempt_{attempt}"
        yield from _once(
            again, f"{again}/", {key: event[key] for key in ("time", "step", "loss") if key in event}, sent
        )


def _once(curve: str, prefix: str, event: Event, sent: dict[str, int]) -> Iterator[Row]:
    step = int(event["step"])
    if step <= sent.get(curve, -1):
        return
    sent[curve] = step
    yield from _values(prefix, event, step)


def _values(prefix: str, event: Event, step: int) -> Iterator[Row]:
    for name, value in event.items():
        if name not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool):
            yield Row(prefix + name, float(value), round(float(event.get("time", 0)) * 1000), step)


def _by_layer(event: Event) -> dict[str, Any]:
    return {
        f"memory/layer_{layer.get('layer')}/{name}": value
        for layer in event.get("layers", ())
        for name, value in layer.items()
        if name != "layer"
    }
