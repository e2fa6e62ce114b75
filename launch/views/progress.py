"""What people see while a run trains: a live line on a terminal, plain lines elsewhere.  Reads the events only."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run.events import Event, EventReader, History

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_SPEED_WINDOW = 50  # steps whose mean speed makes the forecast
_PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Follows a run from now on: call `update` often, it is cheap; `close` at the end.

    run: run directory.  steps: of the whole run.  console: where to show it (standard error).
    """

    def __init__(self, run: Path, steps: int, console: "Console", clock: Callable[[], float] = time.time) -> None:
        self._reader = EventReader(run)
        self._steps = steps
        self._console = console
        self._clock = clock
        self.history = History.of(self._reader.read())
        self._times: deque[tuple[int, float]] = deque(maxlen=_SPEED_WINDOW)
        self._live: Any = None
        self._last_plain = 0.0
        self._begun = clock()

    def update(self) -> None:
        """Take in new events and show them."""
        events = self.read()
        if self._console.is_terminal:
            self._show_live()
        else:
            self._show_plain(events)

    def read(self) -> list[Event]:
        """Take in new events without showing them."""
        events = self._reader.read()
        self.history.add(events)
        for event in events:
            if event["event"] == "attempt":
                self._times.clear()
                self._times.append((event.get("start_step", 0), event["time"]))
            elif event["event"] == "step":
                self._times.append((event["step"], event["time"]))
        return events

    def close(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def seconds_left(self) -> float | None:
        """Forecast from the mean speed of the last steps, evaluations and saving in between included."""
        if len(self._times) < 2:
            return None
        (first, begin), (last, end) = self._times[0], self._times[-1]
        if last <= first:
            return None
        return max(self._steps - last, 0) * (end - begin) / (last - first)

    def line(self) -> str:
        """The state of the run as one line of text."""
        return "  ".join(f"{name} {value}" for name, value in self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        step = self.history.latest_step()
        if step is None:
            return [("starting", duration(self._clock() - self._begun))]
        left = self.seconds_left()
        facts = [("step", f"{step['step']}/{self._steps}")]
        facts += [(name, text) for name, key, form in _SHOWN if (text := _number(step, key, form))]
        facts.append(("left", "?" if left is None else duration(left)))
        carried = [key for key in self.history.evaluations if key[2] == "carried"]
        if carried:
            key = max(carried)  # of the newest, the held out one: "train" < "validation"
            bits = _number(self.history.evaluations[key], "bits_per_token", ".3f")
            facts.append((f"{key[1]} bits/token", f"{bits} at {key[0]}"))
        if self.history.checkpoints:
            facts.append(("saved", str(max(self.history.checkpoints))))
        return facts

    def _show_plain(self, events: list[Event]) -> None:
        for event in events:
            if event["event"] != "step":
                text = describe(event)
                if text:
                    self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        now = self._clock()
        final = any(event["event"] == "step" and event["step"] == self._steps for event in events)
        if any(event["event"] == "step" for event in events) and (final or now - self._last_plain >= _PLAIN_SECONDS):
            self._last_plain = now
            self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def _show_live(self) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(self._render(), console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        self._live.update(self._render(), refresh=True)

    def _render(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step = self.history.latest_step()
        done = step["step"] if step else 0
        text = Text()
        for name, value in self._facts():
            text.append(f"{name} ", style="dim").append(f"{value}  ")
        rows = Table.grid(expand=True)  # a bar alone ends without a new line
        rows.add_row(ProgressBar(total=self._steps, completed=min(done, self._steps), width=60))
        rows.add_row(text)
        return rows


_SHOWN = (
    ("loss", "loss", ".4f"),
    ("bits/token", "bits_per_token", ".3f"),
    ("tokens/s", "tokens_per_second", ",.0f"),
    ("MFU", "mfu", ".1%"),
)


def describe(event: Event) -> str:
    """An event that is no step as one line; empty for those that people need not see."""
    if event["event"] == "attempt":
        layout = " ".join(f"{name}={value}" for name, value in event.get("layout", {}).items())
        return f"attempt {event.get('attempt')}: {event.get('world_size')} processes ({layout}), from step " + str(
            event.get("start_step", 0)
        )
    if event["event"] == "evaluation":
        bits = _number(event, "bits_per_token", ".3f")
        return f"step {event['step']}: {event['dataset']}, memory {event['memory']}: {bits} bits/token"
    if event["event"] == "checkpoint":
        return f"step {event['step']}: saved {event.get('path', '')} in {_number(event, 'seconds', '.1f')} s"
    return ""


def duration(seconds: float) -> str:
    """1:05, 2:03:04, 3d 04:05."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _number(event: Event, key: str, form: str) -> str:
    value = event.get(key)
    return format(value, form) if isinstance(value, int | float) else ""
