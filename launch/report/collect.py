"""The facts of a report, collected from the files of a run directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brt_dist.config.loading import flatten, load
from brt_dist.event_log import read_events
from brt_dist.events import AttemptEvent, Event
from brt_dist.reading import read_json
from brt_dist.run_directory import RunDirectory
from launch.run.attempt_record import AttemptRecord, read_attempts
from launch.run.dataset_record import dataset_tokens
from launch.run.history import History
from launch.run.redact import redact
from launch.views.planned import Compared, compared

_MOST_SCALED = 400  # number of steps whose tokens and time are on the page


@dataclass(frozen=True)
class RunFacts:
    """What a report shows of a run.

    Attributes:
        folder: the run directory.
        name: run.name.
        steps: of the whole run.
        events: all, in the order of writing.
        attempts: their records.
        config: values by flat key.
        origins: of those values.
        warmup: steps of the learning rate's warm-up.
        epoch_tokens: tokens of the training dataset, if there is a single one and its size is known here.
        planned: the plan beside the measurements.
    """

    folder: Path
    name: str
    steps: int
    events: list[Event]
    attempts: list[AttemptRecord]
    config: dict[str, Any]
    origins: dict[str, str]
    warmup: int = 0
    epoch_tokens: int | None = None
    planned: Sequence[Compared] = ()

    @classmethod
    def of(cls, folder: Path) -> "RunFacts":
        """Collect the facts of a run.

        Raises:
            ConfigError: the folder holds no run.
        """
        run = RunDirectory.existing(folder)
        config = load(run.config).config
        try:
            origins = read_json(run.provenance)
        except (OSError, ValueError):
            origins = None
        origins = origins if isinstance(origins, dict) else {}
        # the tracking URI may hold a password
        flat = {key: redact(value) if isinstance(value, str) else value for key, value in flatten(config).items()}
        records = read_attempts(folder)
        places, events = config.data.training, read_events(folder)
        return cls(
            folder,
            config.run.name,
            config.run.steps,
            events,
            records,
            flat,
            origins,
            config.optimizer.warmup_steps,
            dataset_tokens(places[0][0]) if len(places) == 1 else None,
            compared(config, events),
        )

    @cached_property
    def history(self) -> History:
        return History.of(self.events)

    @property
    def parameters(self) -> int | None:
        plan = self.history.attempt.plan if self.history.attempt else None
        return None if plan is None else plan.parameters

    @property
    def epochs(self) -> float | None:
        """How many times the training dataset was read so far."""
        last = self.history.latest_step()
        if last is None or last.tokens is None or self.epoch_tokens is None:
            return None
        return last.tokens / self.epoch_tokens

    def scales(self) -> dict[str, list[float]]:
        """Tokens and hours of training at some steps, from step 0; hours count steps, evaluations and saves."""
        known = [event for _, event in sorted(self.history.steps.items())]
        every = max(len(known) // _MOST_SCALED, 1)
        steps, tokens, hours = [0.0], [0.0], [0.0]
        elapsed, before = 0.0, None
        for number, event in enumerate(known):
            own = event.step_seconds or 0.0
            elapsed += own if before is None or before.attempt != event.attempt else max(event.time - before.time, 0.0)
            before = event
            if number % every == 0 or number == len(known) - 1:
                steps.append(event.step)
                tokens.append(event.tokens or tokens[-1])
                hours.append(round(elapsed / 3600, 6))
        return {"step": steps, "tokens": tokens, "hours": hours}

    @property
    def status(self) -> str:
        if not self.attempts:
            return "not started"
        last = self.attempts[-1]
        if last.start is None:  # torchrun
            return self.history.state or "not started"
        return "running" if last.end is None else last.verdict or "unknown"

    @property
    def seconds(self) -> float:
        """Time spent in attempts; an attempt that has not ended counts up to its last event."""
        latest = self.events[-1].time if self.events else 0.0
        begun = [(record.start, record.end or latest) for record in self.attempts if record.start is not None]
        return sum(max(end - start, 0.0) for start, end in begun)

    @property
    def hosts(self) -> list[str]:
        return sorted({host for record in self.attempts[-1:] for host in record.nodes})

    @property
    def layout(self) -> str:
        if (attempt := self.history.attempt) is None:
            return "-"
        layout = attempt.layout
        degrees = (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("data", layout.data))
        return " x ".join(f"{name} {degree}" for name, degree in degrees if degree is not None) or "-"

    @property
    def restarts(self) -> list[tuple[float, str]]:
        """The step after which each attempt but the first resumed, and why it was needed."""
        reasons = {record.attempt: record.reason for record in self.attempts}
        begins = [event for event in self.events if isinstance(event, AttemptEvent)][1:]
        return [
            (event.start_step, f"attempt {event.attempt} after: {reasons.get((event.attempt or 0) - 1, '')}")
            for event in begins
        ]


def labels(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each run; runs with the same name get the ends of their directories as well."""
    names = [run.name for run in runs]
    parts = [run.folder.absolute().parts for run in runs]
    found = []
    for number, name in enumerate(names):
        same = [i for i, other in enumerate(names) if other == name and i != number]
        depth = next(
            (
                depth
                for depth in range(1, len(parts[number]) + 1)
                if all(parts[i][-depth:] != parts[number][-depth:] for i in same)
            ),
            1,
        )
        found.append(f"{name} ({'/'.join(parts[number][-depth:])})" if same else name)
    return found
