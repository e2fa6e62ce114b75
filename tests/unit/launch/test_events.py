"""Events as they are read while they are written, and what is shown of them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from brt_dist.config.schema import RunConfig
from brt_dist.event_log import EventReader, read_events
from brt_dist.events import EvaluationEvent, Event, StepEvent, from_json
from brt_dist.run_directory import RunDirectory
from launch.run.history import History
from launch.views.plots import plot_loss
from launch.views.progress import ProgressLine, duration
from launch.views.summary import evaluation_table
from pipelines.tables import text_of


def step(number: int, at: float = 0.0, loss: float = 1.0, attempt: int = 1) -> dict[str, Any]:
    fields = {"loss": loss, "bits_per_token": loss * 1.4427, "tokens_per_second": 1234.5}
    return {"event": "step", "time": at, "attempt": attempt, "step": number, **fields}


def attempt(number: int, start: int, at: float = 0.0) -> dict[str, Any]:
    layout = {"tensor": 2, "data": 1}
    return {
        "event": "attempt", "time": at, "attempt": number, "world_size": 2, "layout": layout, "start_step": start
    }  # fmt: skip


def evaluation(number: int, dataset: str, memory: str, bits: float) -> dict[str, Any]:
    kind = {"event": "evaluation", "time": 0.0, "attempt": 1, "step": number, "dataset": dataset, "memory": memory}
    return {**kind, "loss": 1.0, "bits_per_token": bits, "tokens": 100}


def length(steps: int) -> RunConfig:
    return RunConfig(directory=Path("run"), steps=steps)


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepEvent)]


def parsed(*events: dict[str, Any]) -> list[Event]:
    found = [from_json(event) for event in events]
    assert None not in found
    return [event for event in found if event is not None]


def append(run: Path, *events: dict[str, Any]) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_following_a_file_that_grows(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert reader.read() == []
    append(tmp_path, step(1), step(2))
    assert steps(reader.read()) == [1, 2]
    half = json.dumps(step(3)).encode()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(half[:20])
    assert reader.read() == []
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(half[20:] + b"\n")
    assert steps(reader.read()) == [3]
    assert steps(EventReader(tmp_path, reader.offset).read()) == []
    assert steps(read_events(tmp_path)) == [1, 2, 3]


def test_a_cut_line_in_the_middle_and_strange_lines_are_skipped(tmp_path: Path) -> None:
    append(tmp_path, step(1))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "step", "ti\n[]\n{"event": "step"}\n{"event": 5}\n\n\xff\n')
    append(tmp_path, step(2))
    assert steps(read_events(tmp_path)) == [1, 2]


def test_reading_in_portions(tmp_path: Path) -> None:
    append(tmp_path, *(step(number) for number in range(7)))
    reader = EventReader(tmp_path)
    assert [len(reader.read(3)) for _ in range(4)] == [3, 3, 1, 0]


def test_after_a_resume_the_later_line_wins_and_what_was_lost_is_gone() -> None:
    events = [attempt(1, 0), step(1), step(2), step(3, loss=3.0), evaluation(3, "train", "carried", 2.0)]
    events += [{"event": "checkpoint", "step": 2, "path": "checkpoints/step_00000002"}]
    history = History.of(parsed(*events, attempt(2, 2)))
    assert sorted(history.steps) == [1, 2] and not history.evaluations and sorted(history.checkpoints) == [2]
    history.add(parsed(step(3, loss=4.0, attempt=2)))
    latest = history.latest_step()
    assert latest is not None and (latest.step, latest.loss) == (3, 4.0)


def test_plain_progress_and_the_time_that_is_left(tmp_path: Path) -> None:
    now = [1000.0]
    output = io.StringIO()
    progress = ProgressLine(tmp_path, length(100), Console(file=output, width=200), clock=lambda: now[0])
    progress.update()
    assert output.getvalue() == "" and "starting 0:00" in progress.line()
    append(tmp_path, attempt(1, 10, at=1000.0), step(11, 1002.0), step(12, 1004.0))
    append(tmp_path, evaluation(12, "train", "carried", 2.5), evaluation(12, "validation", "carried", 2.75))
    append(tmp_path, evaluation(12, "validation", "cleared", 3.5))
    append(
        tmp_path, {"event": "checkpoint", "time": 1, "attempt": 1, "step": 12, "path": "checkpoints/x", "seconds": 1}
    )
    now[0] = 1004.0
    progress.update()
    lines = output.getvalue().splitlines()
    assert lines[0] == "attempt 1: 2 processes (tensor=2 data=1), resumed after step 10"
    assert "step 12: saved checkpoints/x in 1.0 s" in lines
    assert lines[-1] == (
        "step 12/100  loss 1.0000  bits/token 1.443  tokens/s 1,234  left 2:57  "
        "held out bits/token 2.750 at 12  saved 12"
    )
    append(tmp_path, step(13, 1006.0))
    progress.update()
    assert len(output.getvalue().splitlines()) == len(lines), "not a line for every step"
    append(tmp_path, step(100, 1300.0))
    progress.update()
    assert "step 100/100" in output.getvalue().splitlines()[-1], "but one for the last"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "message", "message": "warning: step 3: the model ignores its state"}, None),
        ({"event": "skip", "step": 3, "why": "not finite", "loss": "nan", "grad_norm": "1.5"},
         "warning: step 3: no update: not finite (loss nan, gradient norm 1.5)"),
        ({"event": "skip", "step": 3, "why": "skipped after a divergence"},
         "warning: step 3: no update: skipped after a divergence"),
        ({"event": "spike", "step": 3, "quantity": "grad_norm", "grad_norm": 12.0, "median": 0.5},
         "warning: step 3: gradient norm 12, far above its median of 0.5"),
        ({"event": "straggler", "step": 3, "rank": 1, "host": "node7", "seconds": 2.5, "median_seconds": 1},
         "warning: step 3: rank 1 on node7 is slow: 2.50 s on a step, median 1.00 s"),
        ({"event": "drift", "step": 3, "weight": "final_norm.weight", "ranks": [1], "others": [0, 2]},
         "warning: step 3: copies of final_norm.weight differ between ranks 1 and 0, 2"),
        ({"event": "drift", "step": 3},
         "warning: step 3: a checksum of the weights differed between ranks, the weights do not"),
        ({"event": "diverged", "step": 3, "loss": "inf"}, "warning: step 3: the run diverged (loss inf)"),
    ],
)  # fmt: skip
def test_warnings_of_guards_are_shown(event: dict[str, Any], line: str | None, tmp_path: Path) -> None:
    output = io.StringIO()
    append(tmp_path, attempt(1, 0, at=1000.0), step(3, 1002.0))
    progress = ProgressLine(tmp_path, length(100), Console(file=output, width=200), clock=lambda: 1003.0)
    append(tmp_path, {"time": 1002.5, "attempt": 1, **event})
    append(tmp_path, {"event": "message", "time": 1, "attempt": 1, "message": "device: cpu, as run.device says"})
    progress.update()
    assert output.getvalue().splitlines() == [line or event["message"]]


def test_live_progress_on_a_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    progress = ProgressLine(tmp_path, length(10), console)
    append(tmp_path, attempt(1, 0, at=1.0), step(1, 2.0), step(2, 3.0))
    progress.update()
    progress.close()
    progress.close()
    text = output.getvalue()
    assert "2/10" in text and "0:08" in text and "1,234" in text
    assert "\x1b[?25h" in text, "the cursor is back"


def test_on_a_terminal_evaluations_and_saves_stay_and_there_is_one_bar(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    saved = {"event": "checkpoint", "time": 1, "attempt": 1, "step": 2, "path": "checkpoints/x", "seconds": 1}
    for number in (1, 2):  # each attempt has a progress of its own
        progress = ProgressLine(tmp_path, length(10), console)
        append(tmp_path, attempt(number, 0, at=1.0), step(1, 2.0), step(2, 3.0))
        progress.update()
        append(tmp_path, evaluation(2, "validation", "carried", 2.75), {**saved, "attempt": number})
        progress.update()
        progress.close()
    assert shown(output.getvalue()) == [
        line
        for number in (1, 2)
        for line in (
            f"attempt {number}: 2 processes (tensor=2 data=1), from the start",
            "step 2: held out, memory carried: 2.750 bits/token",
            "step 2: saved checkpoints/x in 1.0 s",
            "step 2/10  loss 1.0000  bits/token 1.443  tokens/s 1,234  left 0:09  held out bits/token 2.750 at 2"
            "  saved 2",
        )
    ]


def shown(output: str) -> list[str]:
    """The lines that a terminal shows in the end: what moves the cursor and erases lines is done."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]


def test_what_is_done_instead_of_training_is_shown(tmp_path: Path) -> None:
    progress = ProgressLine(tmp_path, length(10), Console(file=io.StringIO()), clock=lambda: 1065.0)
    append(tmp_path, attempt(1, 0, at=1000.0), step(1, 1001.0))
    progress.update()
    assert "evaluating" not in progress.line()  # no heartbeat yet
    beat = RunDirectory(tmp_path).attempt(1).heartbeat
    beat.parent.mkdir(parents=True)
    for phase, told in (("evaluating", "evaluating 1:00"), ("saving", "saving 1:00"), ("training", None)):
        beat.write_text(json.dumps({"phase": phase, "step_seconds": 1.0, "time": 1005.0}))
        assert (told or "loss") in progress.line() and ("1:00" in progress.line()) == (told is not None)
    beat.write_text("{")
    assert "step 1/10" in progress.line()


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00", "1:00", "59:59", "1:00:00", "1d 01:01"
    ]  # fmt: skip


def test_the_picture_shows_training_and_evaluations(tmp_path: Path) -> None:
    assert plot_loss(tmp_path) is None
    append(tmp_path, attempt(1, 0), *(step(number, loss=3 / number) for number in range(1, 60)))
    first = plot_loss(tmp_path, "title")
    assert first == tmp_path / "plots" / "loss.png"
    before = first.read_bytes()
    assert before.startswith(b"\x89PNG")
    append(tmp_path, evaluation(50, "validation", "cleared", 2.0), {**step(60), "loss": None, "bits_per_token": 1.0})
    plot_loss(tmp_path, "title")
    assert first.read_bytes() != before


def test_the_table_of_evaluations() -> None:
    events = [
        EvaluationEvent(step=5, dataset=dataset, memory=memory, bits_per_token=bits)
        for dataset, memory, bits in (
            ("train", "carried", 2.0),
            ("train", "cleared", 2.5),
            ("validation", "carried", 3.0),
        )
    ]
    lines = text_of(evaluation_table(events, 5)).splitlines()
    assert [line.split() for line in lines[1:]] == [["training", "2.000", "2.500"], ["held", "out", "3.000", "-"]]
