"""`brt status --watch`: a live view of a run, from the files of its directory alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from launch.run.attempt_record import AttemptRecord, read_attempts, read_last_attempt
from launch.run.claim import is_claimed, launcher_of
from launch.views.progress import ProgressLine, duration
from launch.views.summary import verdict_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from brt_dist.config.schema import RunConfig

_LOOK_SECONDS = 0.5
_PLAIN_SECONDS = 10.0
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of the curve


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Values as a line of at most `width` bars, each the mean of an equal stretch of values."""
    if not values:
        return ""
    size = max(len(values) / width, 1.0)
    stretches = [
        values[int(i * size) : max(int((i + 1) * size), int(i * size) + 1)] for i in range(min(len(values), width))
    ]
    means = [sum(stretch) / len(stretch) for stretch in stretches if stretch]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


class Watch:
    """What is shown of a run; `update` reads new events.

    Args:
        run: its directory.
        config: its settings.
        is_expected: whether the run was submitted after a time (unix seconds) and has not ended since.
    """

    def __init__(
        self,
        run: Path,
        config: "RunConfig",
        console: "Console",
        clock: Callable[[], float] = time.time,
        is_expected: Callable[[float], bool] = lambda _: False,
    ) -> None:
        self._run, self._console, self._clock = run, console, clock
        self._is_expected = is_expected
        self.progress = ProgressLine(run, config, console, clock)

    def update(self) -> None:
        self.progress.read()

    @property
    def records(self) -> list[AttemptRecord]:
        return read_attempts(self._run)

    @property
    def is_over(self) -> bool:
        """Whether the last attempt ended and none follows, or its launcher is gone."""
        return self.is_lost or self._has_ended

    @property
    def is_lost(self) -> bool:
        """Whether the launcher was killed before it recorded how the attempt ended or what follows."""
        last = read_last_attempt(self._run)
        return last is not None and not last.is_last and launcher_of(self._run, last.host) == "gone"

    @property
    def _has_ended(self) -> bool:
        """Whether the last attempt ended and none follows: neither from its launcher nor from a newer one."""
        last = read_last_attempt(self._run)
        return (
            last is not None and last.is_last and not is_claimed(self._run) and not self._is_expected(last.end or 0.0)
        )

    def lines(self) -> list[tuple[str, str]]:
        """Names and values."""
        history, now = self.progress.history, self._clock()
        last = history.latest_step()
        steps = [event for _, event in sorted(history.steps.items())]
        bits = [event.bits_per_token for event in steps if event.bits_per_token is not None]
        found = [("", self.progress.line())]
        if bits:
            found.append(("bits/token", f"{sparkline(bits)}  {bits[0]:.2f} to {bits[-1]:.2f}"))
        if last and last.step_seconds and last.data_wait_seconds is not None:
            share = last.data_wait_seconds / last.step_seconds
            found.append(("step", f"{last.step_seconds:.3g} s, of which {share:.0%} waiting for data"))
        if last:
            found.append(("last step", f"{duration(now - last.time)} ago"))
        if (saved := history.latest_checkpoint()) is not None:
            found.append(("checkpoint", f"step {saved.step}, {duration(now - saved.time)} ago"))
        for record in self.records[-4:]:
            nodes = ", ".join(sorted(set(record.nodes)))
            verdict = record.verdict or "running"
            what = f": {record.reason}" if record.reason and record.reason != verdict else ""
            found.append((f"attempt {record.attempt}", f"{verdict_words(verdict)}{what}  [{nodes}]"))
        if not self.records:
            found.append(("", "not started yet; waiting for the first attempt"))
        elif self.is_lost:
            found.append(("launcher", "was killed; run the same command again to resume from the last checkpoint"))
        return found

    def render(self) -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name, value in self.lines():
            grid.add_row(Text(name, style="dim"), Text(value))
        return grid


def watch(
    run: Path, config: "RunConfig", console: "Console", is_expected: Callable[[float], bool] = lambda _: False
) -> None:
    """Show the run until it is over or the user presses Ctrl-C; without a terminal, print a line now and then.

    `is_expected` is as for :class:`Watch`.
    """
    view = Watch(run, config, console, is_expected=is_expected)
    if console.is_terminal:
        from rich.live import Live

        with Live(view.render(), console=console, auto_refresh=False) as live:
            while True:
                over = view.is_over  # before reading, so that the last view is complete
                view.update()
                live.update(view.render(), refresh=True)
                if over:
                    return
                time.sleep(_LOOK_SECONDS)
    while True:
        over = view.is_over
        view.update()
        console.print(view.progress.line(), markup=False, highlight=False, soft_wrap=True)
        if over and view.is_lost:
            console.print(": ".join(view.lines()[-1]), markup=False, highlight=False, soft_wrap=True)
        if over:
            return
        end = time.monotonic() + _PLAIN_SECONDS
        while time.monotonic() < end and not view.is_over:
            time.sleep(_LOOK_SECONDS)
