"""The events of a run: the types of what rank 0 appends to RUN/metrics.jsonl.

An event is one JSON object on one line: its kind (`event`), the time, the number of the attempt, and its own fields.
Every kind is a dataclass here; writers make one, readers get one, and no other code spells a key.  To add a kind, write
its class and name it in `_KINDS`.

The file outlives the code that wrote it, so reading is tolerant (`json_records.py`): kinds and fields that this code
does not know are ignored, a missing or damaged field gets its default, and a line that lacks a field without a default
is skipped.
RUN/system/HOST.jsonl, written by the agent of each node, holds events too.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from brt_dist.json_records import KEY, LATER, RANGE, REST, plain, plain_fields, record
from brt_dist.reading import LATEST, parse_json


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have.

    Args:
        time: unix seconds; set when the event is written.
        attempt: of the run, likewise; unset in RUN/system.
    """

    kind: ClassVar[str]
    time: float = field(default=0.0, metadata={RANGE: (0.0, LATEST)})
    attempt: int | None = None

    def details(self) -> dict[str, Any]:
        """The event's own fields that are set, as written, without its step."""
        common = ("event", "time", "attempt", "step")
        return {key: value for key, value in to_json(self).items() if key not in common}


@dataclass(frozen=True)
class LayoutSizes:
    """Degrees of parallelism, streams in a micro-batch, and streams of the run."""

    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    micro_batch: int | None = None
    streams: int | None = None


@dataclass(frozen=True)
class RankSizes:
    """What one rank needs: parameters are a count, the rest are bytes (see `brt_dist.planning.memory`)."""

    parameters: int
    weights: int
    optimizer: int
    carried: int
    gradients: int | None = field(default=None, metadata={LATER: True})
    buckets: int | None = field(default=None, metadata={LATER: True})
    pending: int | None = field(default=None, metadata={LATER: True})
    in_flight: int | None = field(default=None, metadata={LATER: True})
    device: int | None = field(default=None, metadata={LATER: True})
    host: int | None = field(default=None, metadata={LATER: True})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a run before it starts; `fullest_rank` holds the most bytes."""

    parameters: int
    ranks: int | None = None
    fullest_rank: RankSizes
    tokens_per_step: int
    flops_per_step: float


@dataclass(frozen=True, kw_only=True)
class AttemptEvent(Event):
    """An attempt begins; it trains the steps after `start_step`."""

    kind = "attempt"
    world_size: int | None = None
    layout: LayoutSizes = LayoutSizes()
    start_step: int = 0
    device: str | None = None
    flops_per_token: float | None = None
    plan: Plan | None = None


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """The first step of an attempt is done; `seconds` has the time of each part of rank 0's start, by name."""

    kind = "start"
    step: int
    seconds: Mapping[str, float] = field(default_factory=dict, metadata={REST: True})


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """A step that was logged.

    Args:
        loss: mean, in nats per token.
        tokens: tokens with a target, trained on since the beginning of the run.
        data_wait_seconds: the part of `step_seconds` spent waiting for data.
        mfu: share of the devices' peak FLOP/s; unset if the peak is unknown.
    """

    kind = "step"
    step: int
    loss: float | None = None
    bits_per_token: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    data_wait_seconds: float | None = None
    peak_memory_bytes: int | None = None
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class PartsEvent(Event):
    """Where the time of a step went: rank 0's `seconds` for each part, by name; they add up to the step.

    `forward`, `backward`, `update`: without communication.  `tensor`, `reduce`, `gather`, `pipeline`, `agreement`:
    exposed communication, including waiting for other ranks.  `data`: waiting for data.  `other`: the rest.
    """

    kind = "parts"
    step: int
    seconds: Mapping[str, float] = field(default_factory=dict, metadata={REST: True})


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss in nats over `tokens` tokens at positions [begin, end) of their documents; no end: up to the last."""

    begin: int = field(metadata={KEY: "from"})
    end: int | None = field(metadata={KEY: "to"})
    loss: float
    tokens: int


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer, by name; its mixer declares them."""

    layer: int
    values: Mapping[str, float] = field(default_factory=dict, metadata={REST: True})


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(Event):
    """An evaluation of one dataset (`train`, `validation`).

    Args:
        memory: "carried"; or "cleared", "state cleared", "cache cleared": at the start of every segment.
        layers: statistics of layers that report some; only with memory carried.
        accuracy: share of targets whose likeliest token is right; of objectives mlm and denoise.
        legal, legal_words, state_accuracy, stack_accuracy: of objective oracle, see `OracleScores`.
    """

    kind = "evaluation"
    step: int
    dataset: str
    memory: str
    loss: float | None = None
    bits_per_token: float | None = None
    tokens: int | None = None
    positions: tuple[PositionLoss, ...] = ()
    layers: tuple[LayerStatistics, ...] = field(default=(), metadata={LATER: True})
    seconds: float | None = None
    accuracy: float | None = field(default=None, metadata={LATER: True})
    legal: float | None = field(default=None, metadata={LATER: True})
    legal_words: float | None = field(default=None, metadata={LATER: True})
    state_accuracy: float | None = field(default=None, metadata={LATER: True})
    stack_accuracy: float | None = field(default=None, metadata={LATER: True})


@dataclass(frozen=True)
class Sample:
    """document: number in the dataset.  prompt: its beginning.  text: what the model generated after it."""

    document: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SampleEvent(Event):
    """Text that the model generated."""

    kind = "sample"
    step: int
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint was published.

    Args:
        path: relative to the run directory.
        stall_seconds: how long training waited.
    """

    kind = "checkpoint"
    step: int
    path: str | None = None
    seconds: float | None = None
    stall_seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryEvent(Event):
    """Statistics of the memory that layers carry."""

    kind = "memory"
    step: int
    layers: tuple[LayerStatistics, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldEvent(Event):
    """What rank 0 holds after its first update (see `RankSizes`)."""

    kind = "held"
    step: int | None = None
    parameters: int | None = None
    weights: int | None = None
    optimizer: int | None = None
    carried: int | None = None


@dataclass(frozen=True, kw_only=True)
class SkipEvent(Event):
    """A step without an update.  Numbers are text, as JSON has no NaN."""

    kind = "skip"
    step: int | None = None
    why: str | None = None
    loss: str | None = None
    grad_norm: str | None = None


@dataclass(frozen=True, kw_only=True)
class SpikeEvent(Event):
    """`quantity` (`loss` or `grad_norm`; only that one is set) was far above its median."""

    kind = "spike"
    step: int | None = None
    quantity: str | None = None
    loss: float | None = None
    grad_norm: float | None = None
    median: float | None = None


@dataclass(frozen=True, kw_only=True)
class DivergedEvent(Event):
    """The run diverged at this step.  Numbers are text, as JSON has no NaN."""

    kind = "diverged"
    step: int | None = None
    loss: str | None = None
    grad_norm: str | None = None


@dataclass(frozen=True, kw_only=True)
class StragglerEvent(Event):
    """A rank works longer on a step than the others."""

    kind = "straggler"
    step: int | None = None
    rank: int | None = None
    host: str | None = None
    seconds: float | None = None
    median_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class DriftEvent(Event):
    """Copies of a weight differ: those of `ranks` are not those of `others`."""

    kind = "drift"
    step: int | None = None
    weight: str | None = None
    ranks: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IgnoredStateEvent(Event):
    """The model does not use the state that it carries.

    Args:
        dataset: the one that was evaluated.
        bits: what carrying the state is worth, in bits per token read with carried memory.
        least: what it should be worth (`run.guards.state_bits`).
    """

    kind = "ignored_state"
    step: int
    dataset: str | None = None
    bits: float | None = None
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class MessageEvent(Event):
    """Something to tell the user."""

    kind = "message"
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """Rank 0 ended: the name of an `ExitCode` in lower case, and its number."""

    kind = "end"
    status: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class SystemEvent(Event):
    """A sample of a node's system metrics, by MLflow's names for them."""

    kind = "system"
    values: Mapping[str, float] = field(default_factory=dict, metadata={REST: True})


_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        AttemptEvent,
        StartEvent,
        StepEvent,
        PartsEvent,
        EvaluationEvent,
        SampleEvent,
        CheckpointEvent,
        MemoryEvent,
        HeldEvent,
        SkipEvent,
        SpikeEvent,
        DivergedEvent,
        StragglerEvent,
        DriftEvent,
        IgnoredStateEvent,
        MessageEvent,
        EndEvent,
        SystemEvent,
    )
}


def line_of(event: Event) -> bytes:
    """The line of an event in a file."""
    return json.dumps(to_json(event)).encode() + b"\n"


def parse(line: bytes | str) -> Event | None:
    """The event of a line; None for half a line, or anything else that is not a known kind of event."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return from_json(found)


def to_json(event: Event) -> dict[str, Any]:
    """An event as plain JSON; fields that are unset are left out."""
    fields = ((one, getattr(event, one.name)) for one in dataclasses.fields(event))
    return {"event": event.kind, **plain_fields((one, value) for one, value in fields if value is not None)}


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as stored in the event of an attempt."""
    found: dict[str, Any] = plain(plan)
    return found


def from_json(found: Any) -> Event | None:
    """Back from :func:`to_json`; None if it is not an event of a known kind, or lacks a field without a default."""
    kind = found.get("event") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    try:
        return record(_KINDS[kind], found)
    except TypeError:
        return None
