"""The progress of a run: a bar on a terminal, plain lines elsewhere.  Reads only the files of the run directory."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.event_log import EventReader
from brt_dist.events import (
    AttemptEvent,
    CheckpointEvent,
    DivergedEvent,
    DriftEvent,
    EvaluationEvent,
    Event,
    LayoutSizes,
    MessageEvent,
    SkipEvent,
    SpikeEvent,
    StepEvent,
    StragglerEvent,
)
from brt_dist.reading import read_json
from brt_dist.run_directory import RunDirectory
from launch.run.history import History
from launch.views.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from brt_dist.config.schema import RunConfig

_PLAIN_SECONDS = 10.0  # between plain lines
_TEXTS = {"train": "training text", "validation": "held out"}


class ProgressLine:
    """Shows the progress of a run.  Call `update` often, it is cheap, and `close` at the end.

    Args:
        run: run directory.
        config: how many steps there are, and when an evaluation or a save is due.
        console: where to show it (standard error).
    """

    def __init__(
        self, run: Path, config: "RunConfig", console: "Console", clock: Callable[[], float] = time.time
    ) -> None:
        self._run = run
        self._reader = EventReader(run)
        self._steps = config.steps
        self._console = console
        self._clock = clock
        self.history, self._pace = History(), Pace(config)
        self.read()
        self._live: Any = None
        self._last_plain = 0.0
        self._begun = clock()

    def update(self) -> None:
        """Read new events and show them."""
        events = self.read()
        if self._console.is_terminal:
            self._show_live(events)
        else:
            self._show_plain(events)

    def read(self) -> list[Event]:
        """Read new events without showing them."""
        events = self._reader.read()
        self.history.add(events)
        self._pace.add(events)
        return events

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()  # remove the bar, so that there is never more than one
            self._live = None
            if self.history.steps:
                self._tell(self.line())

    def line(self) -> str:
        """The state of the run as one line of text."""
        return "  ".join(f"{name} {value}" for name, value in self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        step = self.history.latest_step()
        if step is None:
            return [("starting", duration(self._clock() - self._begun) + self._starting())]
        left = self._pace.seconds_left()
        facts = [("step", f"{step.step}/{self._steps}")]
        if (doing := self._doing()) is not None:
            facts.append(doing)
        for name, value, form in (
            ("loss", step.loss, ".4f"),
            ("bits/token", step.bits_per_token, ".3f"),
            ("tokens/s", step.tokens_per_second, ",.0f"),
            ("MFU", step.mfu, ".1%"),
        ):
            if value is not None:
                facts.append((name, format(value, form)))
        facts.append(("left", "?" if left is None else duration(left)))
        carried = [key for key in self.history.evaluations if key[2] == "carried"]
        if carried:
            key = max(carried)  # of the newest, the held-out one: "train" < "validation"
            bits = number(self.history.evaluations[key].bits_per_token, ".3f")
            facts.append((f"{_TEXTS.get(key[1], key[1])} bits/token", f"{bits} at {key[0]}"))
        if self.history.checkpoints:
            facts.append(("saved", str(max(self.history.checkpoints))))
        return facts

    def _starting(self) -> str:
        """What the ranks of the newest attempt wait for before their first step."""
        numbers = RunDirectory(self._run).attempts()
        beat = self._beat(numbers[-1]) if numbers else None
        return f" ({beat['detail']})" if beat is not None and beat.get("detail") else ""

    def _beat(self, attempt: int) -> dict[str, Any] | None:
        """The heartbeat of an attempt; None if it cannot be read."""
        try:
            found = read_json(RunDirectory(self._run).attempt(attempt).heartbeat)
            return {**found, "phase": str(found["phase"]), "time": float(found["time"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _doing(self) -> tuple[str, str] | None:
        """What the ranks do instead of training, and for how long; None while they train or give no sign."""
        attempt = self.history.attempt
        if attempt is None or attempt.attempt is None or self.history.end is not None:
            return None
        if (beat := self._beat(attempt.attempt)) is None or beat["phase"] == "training":
            return None
        detail = f" ({beat['detail']})" if beat.get("detail") else ""
        return beat["phase"], duration(self._clock() - beat["time"]) + detail

    def _show_plain(self, events: list[Event]) -> None:
        self._announce(events)
        now = self._clock()
        steps = [event.step for event in events if isinstance(event, StepEvent)]
        if steps and (self._steps in steps or now - self._last_plain >= _PLAIN_SECONDS):
            self._last_plain = now
            self._tell(self.line())

    def _show_live(self, events: list[Event]) -> None:
        if self._live is None:
            from rich.live import Live

            live = Live(
                self._render(), console=self._console, auto_refresh=False, redirect_stdout=False, transient=True
            )
            self._live = live
            live.start()
        self._announce(events)  # above the bar, where it stays
        self._live.update(self._render(), refresh=True)

    def _announce(self, events: list[Event]) -> None:
        for event in events:
            if text := describe(event):
                self._tell(text)

    def _tell(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step = self.history.latest_step()
        done = step.step if step else 0
        text = Text()
        for name, value in self._facts():
            text.append(f"{name} ", style="dim").append(f"{value}  ")
        rows = Table.grid(expand=True)  # a bar alone ends without a new line
        rows.add_row(ProgressBar(total=self._steps, completed=min(done, self._steps), width=60))
        rows.add_row(text)
        return rows


def describe(event: Event) -> str:
    """An event as one line; empty for steps and other events that are not announced."""
    match event:
        case AttemptEvent():
            layout = layout_text(event.layout)
            processes = "1 process" if event.world_size == 1 else f"{event.world_size} processes"
            return f"attempt {event.attempt}: {processes} ({layout}), " + (
                f"resumed after step {event.start_step}" if event.start_step else "from the start"
            )
        case EvaluationEvent():
            bits = number(event.bits_per_token, ".3f")
            found = "" if event.accuracy is None else f", accuracy {event.accuracy:.1%}"
            found += "" if event.legal is None else f", {event.legal:.1%} legal"
            memory = event.memory if " " in event.memory else f"memory {event.memory}"
            return f"step {event.step}: {_TEXTS.get(event.dataset, event.dataset)}, {memory}: {bits} bits/token{found}"
        case CheckpointEvent():
            return f"step {event.step}: saved {event.path or ''} in {number(event.seconds, '.1f')} s"
        case MessageEvent() if (event.message or "").startswith("warning: "):
            return event.message or ""
    return _warning(event)


def _warning(event: Event) -> str:
    """What a guard saw, as one line; empty for other events."""
    match event:
        case SkipEvent():
            said = f"no update: {event.why}{_values(event.loss, event.grad_norm)}"
        case SpikeEvent():
            name, value = ("loss", event.loss) if event.quantity == "loss" else ("gradient norm", event.grad_norm)
            said = f"{name} {number(value, '.4g')}, far above its median of {number(event.median, '.4g')}"
        case DivergedEvent():
            said = f"the run diverged{_values(event.loss, event.grad_norm)}"
        case StragglerEvent():
            seconds = f"{number(event.seconds, '.2f')} s on a step, median {number(event.median_seconds, '.2f')} s"
            said = f"rank {event.rank} on {event.host} is slow: {seconds}"
        case DriftEvent() if event.weight is None:
            said = "a checksum of the weights differed between ranks, the weights do not"
        case DriftEvent():
            ranks, others = (", ".join(map(str, some)) for some in (event.ranks, event.others))
            said = f"copies of {event.weight} differ between ranks {ranks} and {others}"
        case _:
            return ""
    return f"warning: step {event.step}: {said}"


def _values(loss: str | None, grad_norm: str | None) -> str:
    known = {"loss": loss, "gradient norm": grad_norm}
    text = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return f" ({text})" if text else ""


def layout_text(layout: LayoutSizes) -> str:
    return " ".join(f"{name}={size}" for name, size in asdict(layout).items() if size is not None)


def duration(seconds: float) -> str:
    """1:05, 2:03:04, 3d 04:05."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
